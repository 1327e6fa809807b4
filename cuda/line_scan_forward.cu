// One direction of the line scan, a block per channel slice:
//
//     h[t,i] = w0[t,i]·h[t-1,i-1] + w1[t,i]·h[t-1,i] + w2[t,i]·h[t-1,i+1] + λ[t,i]·x[t,i],    h[-1] = h0 or 0
//
// Threads: one per row (cross index i); the previous line is in shared memory. Bytes moved per pixel and channel: x, λ, three
// weights in, h out, each once, and the halo's share again when the slice is wider than a block (scan_tile.cuh).
// Specialised by SCALAR (x, λ), WEIGHT, RESULT (h), STATE, THREADS, LINES.
#include "scan_tile.cuh"

using namespace gspn2;

extern "C" __global__ void __launch_bounds__(THREADS)
    line_scan_forward(const SCALAR* x,       // [B, C, T, I]
                      const WEIGHT* weight,  // [B, G, 3, T, I]
                      const SCALAR* lam,     // [B, C, T, I] or null: 1
                      const State* h0,       // [B, C, I] or null: no previous line
                      RESULT* h,             // [B, C, T, I]
                      State* h_last,         // [B, C, I] or null
                      State* lines,          // [B·C, 2, I] workspace: the line between two tiles
                      const Geometry geometry) {
  const Scan& scan = geometry.scan;
  const long long b = blockIdx.x / scan.channels, c = blockIdx.x % scan.channels;
  const bool along = scan.along != 0;
  x += geometry.x.slice(b, c);
  weight += geometry.weight.slice(b, c / scan.channels_per_group);
  if (lam) lam += geometry.lam.slice(b, c);
  h += geometry.h.slice(b, c);
  lines += blockIdx.x * 2 * scan.width;

  const Stage stage;
  const int owned = owned_rows(scan.width);
  for (long long t0 = 0; t0 < scan.lines; t0 += LINES) {
    const int count = min(static_cast<long long>(LINES), scan.lines - t0);
    const State* line_in = lines + (t0 / LINES % 2) * scan.width;
    State* line_out = lines + (1 - t0 / LINES % 2) * scan.width;
    const bool ends = t0 + count == scan.lines;

    for (long long row0 = 0; row0 < scan.width; row0 += owned) {
      const Band band{row0 - halo_of(scan.width), halo_of(scan.width)};
      const bool inside = band.inside(scan.width);

      stage_weights(stage, weight, geometry.weight, scan, band, t0,
                    [&](long long t) { return t % scan.chunk != 0 || (t == 0 && h0); });
      for_each_pixel(along, [&](int n, int r) {
        const long long t = t0 + n, i = band.first + r;
        State value = 0;
        if (t < scan.lines && i >= 0 && i < scan.width) {
          value = widen(x[geometry.x.pixel(t, i)]);
          if (lam) value *= widen(lam[geometry.lam.pixel(t, i)]);
        }
        stage.signal[n * PITCH + r] = value;
      });
      State state = 0;
      if (inside && t0 > 0) state = line_in[band.row()];
      if (inside && t0 == 0 && h0) state = h0[geometry.first.at(b, c, band.row())];
      __syncthreads();

      for (int n = 0; n < count; ++n) {
        const int at = n * PITCH + threadIdx.x;
        State* previous = stage.line(n % 2) + threadIdx.x;
        const long long t = t0 + n;
        *previous = t > 0 && t % scan.chunk == 0 ? State(0) : state;
        __syncthreads();
        state = multiply_add(stage.weight[1][at], previous[0], stage.signal[at]);
        state = multiply_add(stage.weight[2][at], previous[1], state);
        state = multiply_add(stage.weight[0][at], previous[-1], state);
        if (!inside) state = 0;
        stage.signal[at] = state;
      }

      if (band.owns(threadIdx.x, scan.width)) {
        line_out[band.row()] = state;
        if (ends && h_last) h_last[geometry.last.at(b, c, band.row())] = state;
      }
      __syncthreads();
      for_each_pixel(along, [&](int n, int r) {
        if (n < count && band.owns(r, scan.width)) {
          h[geometry.h.pixel(t0 + n, band.first + r)] = narrow<RESULT>(stage.signal[n * PITCH + r]);
        }
      });
    }
  }
}
