// One term of a sum of modulated images, for a kernel that has h at hand:
//
//     sum = before + m·(u ⊙ h)
//
// Specialised by HAS_U; without, u is 1.
#pragma once

#include "pack.cuh"

namespace gspn2 {

struct Merge {
  const SCALAR* u;
  const State* before;  // null: 0
  State factor;         // m

  __device__ __forceinline__ Merge(const SCALAR* modulation, const State* so_far, const SCALAR* m)
      : u(modulation), before(so_far), factor(m ? widen(*m) : State(1)) {}
};

// What neighbouring pixels of h are merged with, in registers; so it can be on its way before h is there.
template <int Count>
struct Addends {
  Pack<SCALAR, Count> u;
  Pack<State, Count> before;

  __device__ __forceinline__ void read(const Merge& merge, long long u_at, long long before_at) {
    if (HAS_U) u = read_pack<Count>(merge.u + u_at);
    if (merge.before) before = read_pack<Count>(merge.before + before_at);
  }
  template <typename Sum, typename Hidden>
  __device__ __forceinline__ Pack<Sum, Count> add(const Merge& merge, const Pack<Hidden, Count>& h) const {
    Pack<Sum, Count> sum;
#pragma unroll
    for (int k = 0; k < Count; ++k) {
      const State modulated = HAS_U ? u.widened(k) * h.widened(k) : h.widened(k);
      sum.value[k] =
          narrow<Sum>(merge.before ? multiply_add(merge.factor, modulated, before.value[k]) : merge.factor * modulated);
    }
    return sum;
  }
};

}  // namespace gspn2
