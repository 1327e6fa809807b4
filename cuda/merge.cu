// One term of a sum of modulated images:
//
//     sum = before + m·(u ⊙ h)
//
// The unit and its backward are made of it: y = Σ_d m_d·u_d ⊙ h_d, dh_d = m_d·u_d ⊙ dy, du_d = m_d·dy ⊙ h_d. A sum over
// directions is carried in the state's type and rounded with its last term; `before` and `sum` may be the same array. Besides,
// `states` keeps h rounded.
// PACK > 1: every array's image (C, H, W) is one run of memory; a thread has PACK neighbouring pixels of image blockIdx.y.
// PACK = 1: a thread has one pixel of one channel, in any strides.
// Bytes moved per pixel and channel: h, u, before in, sum, states out, where they are there.
// Specialised by SCALAR (u, m, states), HIDDEN (h), SUM, STATE, HAS_U, THREADS, PACK.
#include "geometry.cuh"
#include "merge_term.cuh"

using namespace gspn2;

extern "C" __global__ void __launch_bounds__(THREADS) merge(const HIDDEN* h,      // [B, C, H, W]
                                                            const SCALAR* u,      // [B, C, H, W]
                                                            const SCALAR* m,      // [1] or null: 1
                                                            const State* before,  // [B, C, H, W] or null: 0
                                                            SUM* sum,             // [B, C, H, W]
                                                            SCALAR* states,       // [B, C, H, W] or null
                                                            const MergeGeometry geometry) {
  const long long number = (static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x) * PACK;
  if (number >= geometry.scan.pixels() / (PACK > 1 ? geometry.scan.batch : 1)) return;
  const Place place(geometry.scan, PACK > 1 ? 0 : number);
  const auto at = [&](const Image& image) { return PACK > 1 ? blockIdx.y * image.batch + number : place.in(image); };
  const Merge merge_by(u, before, m);
  Addends<PACK> addends;
  addends.read(merge_by, at(geometry.u), at(geometry.before));
  const auto hidden = read_pack<PACK>(h + at(geometry.h));
  write_pack(sum + at(geometry.sum), addends.add<SUM>(merge_by, hidden));
  if (states) {
    Pack<SCALAR, PACK> kept;
#pragma unroll
    for (int k = 0; k < PACK; ++k) kept.value[k] = narrow<SCALAR>(hidden.widened(k));
    write_pack(states + at(geometry.states), kept);
  }
}
