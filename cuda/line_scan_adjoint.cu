// The line scan run backwards, the mirror image of line_scan_forward.cu, a block per channel slice:
//
//     g[t] = dh[t] + carry[t],    carry[t,i] = w0[t+1,i+1]·g[t+1,i+1] + w1[t+1,i]·g[t+1,i] + w2[t+1,i-1]·g[t+1,i-1]
//
// with carry[T-1] = dh_last or 0, and dh0 = carry[-1]. Each row owns its weights: it multiplies them by its own g and hands
// the products to its neighbours. Bytes moved per pixel and channel: dh and three weights in, g out (in the state's type).
// Specialised by SCALAR (dh), WEIGHT, STATE, THREADS, LINES.
#include "scan_tile.cuh"

using namespace gspn2;

extern "C" __global__ void __launch_bounds__(THREADS)
    line_scan_adjoint(const SCALAR* dh,      // [B, C, T, I]
                      const WEIGHT* weight,  // [B, G, 3, T, I]
                      const State* dh_last,  // [B, C, I] or null: 0
                      State* g,              // [B, C, T, I]
                      State* dh0,            // [B, C, I] or null
                      State* lines,          // [B·C, 2, I] workspace: the carry between two tiles
                      const Geometry geometry) {
  const Scan& scan = geometry.scan;
  const long long b = blockIdx.x / scan.channels, c = blockIdx.x % scan.channels;
  const bool along = scan.along != 0;
  dh += geometry.dh.slice(b, c);
  weight += geometry.weight.slice(b, c / scan.channels_per_group);
  g += geometry.g.slice(b, c);
  lines += blockIdx.x * 2 * scan.width;

  const Stage stage;
  const int owned = owned_rows(scan.width);
  const long long tiles = (scan.lines + LINES - 1) / LINES;
  for (long long tile = tiles - 1; tile >= 0; --tile) {
    const long long t0 = tile * LINES;
    const int count = min(static_cast<long long>(LINES), scan.lines - t0);
    const State* line_in = lines + (tile % 2) * scan.width;
    State* line_out = lines + (1 - tile % 2) * scan.width;
    const bool starts = tile == tiles - 1;

    for (long long row0 = 0; row0 < scan.width; row0 += owned) {
      const Band band{row0 - halo_of(scan.width), halo_of(scan.width)};
      const bool inside = band.inside(scan.width);

      // the weights of lines that restart, too: nothing is carried on from there
      stage_weights(stage, weight, geometry.weight, scan, band, t0, [](long long) { return true; });
      for_each_pixel(along, [&](int n, int r) {
        const long long t = t0 + n, i = band.first + r;
        const bool exists = t < scan.lines && i >= 0 && i < scan.width;
        stage.signal[n * PITCH + r] = exists ? widen(dh[geometry.dh.pixel(t, i)]) : State(0);
      });
      State carry = 0;
      if (inside && !starts) carry = line_in[band.row()];
      if (inside && starts && dh_last) carry = dh_last[geometry.last.at(b, c, band.row())];
      __syncthreads();

      for (int n = count - 1; n >= 0; --n) {
        const int at = n * PITCH + threadIdx.x;
        State* up = stage.line(n % 2) + threadIdx.x;
        State* down = stage.line(2 + n % 2) + threadIdx.x;
        const long long t = t0 + n;
        const State value = inside ? stage.signal[at] + carry : State(0);
        stage.signal[at] = value;
        *up = stage.weight[0][at] * value;
        *down = stage.weight[2][at] * value;
        __syncthreads();
        carry = multiply_add(stage.weight[1][at], value, up[1] + down[-1]);
        if (t > 0 && t % scan.chunk == 0) carry = 0;
      }

      if (band.owns(threadIdx.x, scan.width)) {
        line_out[band.row()] = carry;
        if (tile == 0 && dh0) dh0[geometry.first.at(b, c, band.row())] = carry;
      }
      __syncthreads();
      for_each_pixel(along, [&](int n, int r) {
        if (n < count && band.owns(r, scan.width)) {
          g[geometry.g.pixel(t0 + n, band.first + r)] = stage.signal[n * PITCH + r];
        }
      });
    }
  }
}
