// The line scan's adjoint, the mirror image of line_scan_forward.cu, a block per channel slice:
//
//     g[t] = dh[t] + carry[t],    carry[t-1,i] = w0[t,i+1]·g[t,i+1] + w1[t,i]·g[t,i] + w2[t,i-1]·g[t,i-1]
//
// with carry[T-1] = dh_last or 0, and dh0 = carry[-1]. It is a scan in the opposite direction, and lines are counted in its order
// here. Each row owns its weights: it multiplies them by its own g and hands the products to its neighbours. Bytes moved per pixel
// and channel: dh and three weights in, g out (in the state's type).
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
  dh += geometry.x.slice(b, c);
  weight += geometry.weight.slice(b, c / scan.channels_per_group);
  g += geometry.h.slice(b, c);
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

      // the weights of lines that restart, too: nothing is carried on from there
      stage_weights(stage, weight, geometry.weight, scan, band, t0, [](long long) { return true; });
      for_each_pixel(along, [&](int n, int r) {
        const long long t = t0 + n, i = band.first + r;
        const bool exists = t < scan.lines && i >= 0 && i < scan.width;
        stage.signal[n * PITCH + r] = exists ? widen(dh[geometry.x.pixel(t, i)]) : State(0);
      });
      State carry = 0;
      if (inside && t0 > 0) carry = line_in[band.row()];
      if (inside && t0 == 0 && dh_last) carry = dh_last[geometry.first.at(b, c, band.row())];
      __syncthreads();

      for (int n = 0; n < count; ++n) {
        const int at = n * PITCH + threadIdx.x;
        State* up = stage.line(n % 2) + threadIdx.x;
        State* down = stage.line(2 + n % 2) + threadIdx.x;
        const long long t = t0 + n;
        if (t > 0 && (scan.lines - t) % scan.chunk == 0) carry = 0;
        const State value = inside ? stage.signal[at] + carry : State(0);
        stage.signal[at] = value;
        *up = stage.weight[0][at] * value;
        *down = stage.weight[2][at] * value;
        __syncthreads();
        carry = multiply_add(stage.weight[1][at], value, up[1] + down[-1]);
      }

      if (band.owns(threadIdx.x, scan.width)) {
        line_out[band.row()] = carry;
        if (ends && dh0) dh0[geometry.last.at(b, c, band.row())] = carry;
      }
      __syncthreads();
      for_each_pixel(along, [&](int n, int r) {
        if (n < count && band.owns(r, scan.width)) {
          g[geometry.h.pixel(t0 + n, band.first + r)] = stage.signal[n * PITCH + r];
        }
      });
    }
  }
}
