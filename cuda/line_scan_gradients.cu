// The gradients of a line scan from g (line_scan_adjoint.cu), a thread per pixel of a group:
//
//     dx[t,i] = λ[t,i]·g[t,i]    dλ[t,i] = x[t,i]·g[t,i]    dw_k[t,i] = Σ over the group's channels of g[t,i]·h[t-1,i+k-1]
//
// The channels are summed one after the other, so the result does not depend on the launch. Bytes moved per pixel and channel:
// g, h, x, λ in, dx, dλ out; per pixel and group: three dw out.
// Specialised by SCALAR (x, λ and their gradients), WEIGHT (dw), RESULT (h), STATE, THREADS.
#include "geometry.cuh"
#include "state.cuh"

using namespace gspn2;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    line_scan_gradients(const State* g,     // [B, C, T, I]
                        const SCALAR* x,    // [B, C, T, I]
                        const SCALAR* lam,  // [B, C, T, I] or null: 1
                        const RESULT* h,    // [B, C, T, I]; null only when dw is not wanted
                        const State* h0,    // [B, C, I] or null: no line before the first
                        SCALAR* dx,         // [B, C, T, I] or null: not wanted
                        SCALAR* dlam,       // [B, C, T, I] or null
                        WEIGHT* dweight,    // [B, G, 3, T, I] or null
                        const Geometry geometry) {
  const Scan& scan = geometry.scan;
  const long long groups = scan.channels / scan.channels_per_group;
  const long long pixels = scan.lines * scan.width;
  const long long index = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
  if (index >= scan.batch * groups * pixels) return;
  const long long slice = index / pixels, pixel = index % pixels;
  const long long b = slice / groups, group = slice % groups;
  const long long t = scan.along ? pixel % scan.lines : pixel / scan.width;
  const long long i = scan.along ? pixel / scan.lines : pixel % scan.width;

  const bool restarts = t % scan.chunk == 0 && !(t == 0 && h0);
  const bool has[3] = {!restarts && i > 0, !restarts, !restarts && i + 1 < scan.width};
  State sum[3] = {0, 0, 0};
  for (long long k = 0; k < scan.channels_per_group; ++k) {
    const long long c = group * scan.channels_per_group + k;
    const State value = g[geometry.g.slice(b, c) + geometry.g.pixel(t, i)];
    if (dx) {
      const State scale = lam ? widen(lam[geometry.lam.slice(b, c) + geometry.lam.pixel(t, i)]) : State(1);
      dx[geometry.dx.slice(b, c) + geometry.dx.pixel(t, i)] = narrow<SCALAR>(scale * value);
    }
    if (dlam) {
      const State signal = widen(x[geometry.x.slice(b, c) + geometry.x.pixel(t, i)]);
      dlam[geometry.dlam.slice(b, c) + geometry.dlam.pixel(t, i)] = narrow<SCALAR>(signal * value);
    }
    if (dweight) {
      for (int tap = 0; tap < 3; ++tap) {
        if (!has[tap]) continue;
        const long long neighbour = i + tap - 1;
        const State previous = t == 0 ? h0[geometry.first.at(b, c, neighbour)]
                                      : widen(h[geometry.h.slice(b, c) + geometry.h.pixel(t - 1, neighbour)]);
        sum[tap] = multiply_add(value, previous, sum[tap]);
      }
    }
  }
  if (dweight) {
    WEIGHT* out = dweight + geometry.dweight.slice(b, group) + geometry.dweight.pixel(t, i);
    for (int tap = 0; tap < 3; ++tap) out[tap * geometry.dweight.tap] = narrow<WEIGHT>(sum[tap]);
  }
}
