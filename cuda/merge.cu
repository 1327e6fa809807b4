// One term of a sum of modulated images, a thread per pixel of a channel:
//
//     sum = before + m·(u ⊙ h)
//
// The unit and its backward are made of it: y = Σ_d m_d·u_d ⊙ h_d, dh_d = m_d·u_d ⊙ dy, du_d = m_d·dy ⊙ h_d and
// dx = Σ_d λ_d ⊙ g_d. A sum over directions is carried in the state's type and rounded with its last term; `before` and `sum`
// may be the same array. Besides, `states` keeps h rounded.
// Bytes moved per pixel and channel: h, u, before in, sum, states out, where they are there.
// Specialised by SCALAR (u, m, states), HIDDEN (h), SUM, STATE, THREADS.
#include "geometry.cuh"
#include "state.cuh"

using namespace gspn2;

extern "C" __global__ void __launch_bounds__(THREADS) merge(const HIDDEN* h,      // [B, C, H, W]
                                                            const SCALAR* u,      // [B, C, H, W] or null: 1
                                                            const SCALAR* m,      // [1] or null: 1
                                                            const State* before,  // [B, C, H, W] or null: 0
                                                            SUM* sum,             // [B, C, H, W]
                                                            SCALAR* states,       // [B, C, H, W] or null
                                                            const MergeGeometry geometry) {
  const long long number = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
  if (number >= geometry.scan.pixels()) return;
  const Place place(geometry.scan, number);
  const State hidden = widen(h[place.in(geometry.h)]);
  const State modulated = u ? widen(u[place.in(geometry.u)]) * hidden : hidden;
  const State factor = m ? widen(*m) : State(1);
  const State value = before ? multiply_add(factor, modulated, before[place.in(geometry.before)]) : factor * modulated;
  sum[place.in(geometry.sum)] = narrow<SUM>(value);
  if (states) states[place.in(geometry.states)] = narrow<SCALAR>(hidden);
}
