// The gradients of a line scan from g (line_scan_adjoint.cu):
//
//     dx[t,i] = λ[t,i]·g[t,i]    dλ[t,i] = x[t,i]·g[t,i]    dw_k[t,i] = Σ over the group's channels of g[t,i]·h[t-1,i+k-1]
//
// To dx may be added what it was `before`: the sum over the directions of a unit; both may be the same array.
// A thread has VECTOR pixels, neighbours in memory, in one run of their group's channels. It sums its channels one after the
// other; the sums of the blockDim.z runs are then added in order. Runs are cut by the number of channels alone, so a sum depends
// neither on the image's size nor on VECTOR. Bytes moved per pixel and channel: g, h, x, λ, before in, dx, dλ out; per pixel and
// group: three dw out.
// ALONG: neighbours in memory lie on successive lines, the last of them first if REVERSED; otherwise they share a line.
// VECTOR > 1: neighbours in memory have no gaps between them, and every vector is whole and aligned. A line and a row have fewer
// than 2^31 pixels.
// Specialised by SCALAR (x, λ, dλ), WEIGHT (dw), RESULT (h), SUM (dx), STATE, MOST_THREADS, VECTOR, ALONG, REVERSED.
#include "geometry.cuh"
#include "pack.cuh"
#include "primitives.cuh"

using namespace gspn2;

using States = Pack<State, VECTOR>;
constexpr int LINES = ALONG ? VECTOR : 1, ON_LINE = VECTOR / LINES;  // of a thread's pixels

// The line before each of a thread's pixels in one channel: by neighbour, then by pixel.
struct Previous {
  State value[3][VECTOR];

  // `h` is at the first pixel in memory if ALONG, else on the line before; `back` is the step to the line before the first,
  // `steps` lead to the neighbours on both sides. Where there is none, a step is 0 and the value any.
  __device__ __forceinline__ Previous(const RESULT* h, long long back, const long long (&steps)[2]) {
    if (ALONG) {  // a vector of each neighbour, moved on by a line
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) {
        const RESULT* row = h + (tap == 1 ? 0 : steps[tap / 2]);
        const auto own = read_pack<VECTOR>(row);
        const State before = widen(row[back]);
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) {
          const int earlier = REVERSED ? k + 1 : k - 1;
          value[tap][k] = earlier < 0 || earlier == VECTOR ? before : own.widened(earlier);
        }
      }
    } else {  // a window
      const auto own = read_pack<VECTOR>(h);
      const State above = widen(h[steps[0]]), below = widen(h[steps[1]]);
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) {
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) {
          const int neighbour = k + tap - 1;
          value[tap][k] = neighbour < 0 ? above : neighbour == VECTOR ? below : own.widened(neighbour);
        }
      }
    }
  }
};

extern "C" __global__ void __launch_bounds__(MOST_THREADS, 2)
    line_scan_gradients(const State* g,       // [B, C, T, I]
                        const SCALAR* x,      // [B, C, T, I]
                        const SCALAR* lam,    // [B, C, T, I] or null: 1
                        const RESULT* h,      // [B, C, T, I]; null only when dw is not wanted
                        const State* h0,      // [B, C, I] or null: no line before the first
                        const State* before,  // [B, C, T, I] or null: 0
                        SUM* dx,              // [B, C, T, I] or null: not wanted
                        SCALAR* dlam,         // [B, C, T, I] or null
                        WEIGHT* dweight,      // [B, G, 3, T, I] or null
                        const GradientsGeometry geometry) {
  // Blocks are numbered along the rows of an image in memory, then from row to row, then from group to group.
  const Scan& scan = geometry.scan;
  const unsigned columns = ALONG ? scan.lines : scan.width, rows = ALONG ? scan.width : scan.lines;
  const unsigned across = geometry.blocks_across, down = geometry.blocks_down, groups = geometry.groups;
  const unsigned column = (blockIdx.x % across * blockDim.x + threadIdx.x) * VECTOR;
  const unsigned row = blockIdx.x / across % down * blockDim.y + threadIdx.y;
  if (column >= columns || row >= rows) return;
  const unsigned slice = blockIdx.x / across / down, b = slice / groups, group = slice % groups;
  const int channels = scan.channels_per_group, length = geometry.run, runs = blockDim.z, run = threadIdx.z;
  const int begin = group * channels + run * length, end = min(begin + length, static_cast<int>(group + 1) * channels);

  // Pixel (t, i) is the thread's first in memory; `start` is the first line that it has pixels of. They have one neighbour more
  // above and below, or none there.
  const int t = !ALONG ? row : REVERSED ? columns - 1 - column : column, start = REVERSED ? t - (LINES - 1) : t;
  const int i = ALONG ? row : column;
  const bool above = i > 0, below = i + ON_LINE < scan.width;
  const auto exists = [&](int step) { return step < 0 ? above : step < ON_LINE || below; };
  const long long back = start == 0 ? 0 : (REVERSED ? -LINES : -1) * geometry.h.line;
  const long long steps[2] = {above ? -geometry.h.cross : 0, below ? ON_LINE * geometry.h.cross : 0};
  States sum[3] = {};
  const auto at = [&](const Image& image, int c) { return image.slice(b, c) + image.pixel(t, i); };
#pragma unroll 1
  for (int c = begin; c < end; ++c) {
    const States value = read_pack<VECTOR>(g + at(geometry.g, c));
    Pack<SCALAR, VECTOR> signal, scale, of_lam;
    States earlier;
    Pack<SUM, VECTOR> of_x;
    if (dlam) signal = read_pack<VECTOR>(x + at(geometry.x, c));
    if (dx && lam) scale = read_pack<VECTOR>(lam + at(geometry.lam, c));
    if (dx && before) earlier = read_pack<VECTOR>(before + at(geometry.before, c));
    if (dweight) {
      const Previous previous(h + at(geometry.h, c) + (ALONG ? 0 : back), back, steps);
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) {
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) {
          sum[tap].value[k] = multiply_add(value.value[k], previous.value[tap][k], sum[tap].value[k]);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < VECTOR; ++k) {
      const State factor = lam ? scale.widened(k) : State(1);
      of_x.value[k] =
          narrow<SUM>(before ? multiply_add(factor, value.value[k], earlier.value[k]) : factor * value.value[k]);
      of_lam.value[k] = narrow<SCALAR>(signal.widened(k) * value.value[k]);
    }
    if (dx) write_pack(dx + at(geometry.dx, c), of_x);
    if (dlam) write_pack(dlam + at(geometry.dlam, c), of_lam);
  }
  if (!dweight) return;

  if (start == 0 && h0) {  // the line before the first, once more for its pixels
    const auto is_first = [](int k) { return k / ON_LINE == (REVERSED ? LINES - 1 : 0); };
#pragma unroll
    for (int k = 0; k < VECTOR; ++k) {
      if (is_first(k)) sum[0].value[k] = sum[1].value[k] = sum[2].value[k] = 0;
    }
#pragma unroll 1
    for (int c = begin; c < end; ++c) {
      const States value = read_pack<VECTOR>(g + at(geometry.g, c));
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) {
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) {
          const int step = k % ON_LINE + tap - 1;
          if (!is_first(k) || !exists(step)) continue;
          const State previous = h0[geometry.first.at(b, c, i + step)];
          sum[tap].value[k] = multiply_add(value.value[k], previous, sum[tap].value[k]);
        }
      }
    }
  }

  if (runs > 1) {
    const unsigned lanes = blockDim.x * blockDim.y;
    States* sums = dynamic_shared<States>() + threadIdx.y * blockDim.x + threadIdx.x;  // [run][tap][lane]
#pragma unroll
    for (int tap = 0; tap < 3; ++tap) sums[(run * 3 + tap) * lanes] = sum[tap];
    __syncthreads();
    if (run > 0) return;
#pragma unroll 2
    for (int other = 1; other < runs; ++other) {
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) {
        const States more = sums[(other * 3 + tap) * lanes];
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) sum[tap].value[k] += more.value[k];
      }
    }
  }
  bool restarts[LINES];
#pragma unroll
  for (int k = 0; k < LINES; ++k) {
    const int line = REVERSED ? t - k : t + k;
    restarts[k] = line == 0 ? !h0 : scan.chunk < scan.lines && line % static_cast<int>(scan.chunk) == 0;
  }
  WEIGHT* to = dweight + geometry.dweight.slice(b, group) + geometry.dweight.pixel(t, i);
#pragma unroll
  for (int tap = 0; tap < 3; ++tap) {
    Pack<WEIGHT, VECTOR> result;
#pragma unroll
    for (int k = 0; k < VECTOR; ++k) {
      const bool summed = !restarts[k / ON_LINE] && exists(k % ON_LINE + tap - 1);
      result.value[k] = narrow<WEIGHT>(summed ? sum[tap].value[k] : State(0));
    }
    write_pack(to, result);
    to += geometry.dweight.tap;
  }
}
