// What a lane does with a line of the scan: some neighbouring rows of one channel, whose state stays in registers.
#pragma once

#include "pack.cuh"

namespace gspn2 {

// Forward, h[t,i] = w0[t,i]·h[t-1,i-1] + w1[t,i]·h[t-1,i] + w2[t,i]·h[t-1,i+1] + λ[t,i]·x[t,i], for a lane's rows: `state` is
// h[t-1] before and h[t] after, `line` is λ·x before and h[t] after.
//
// Adjoint, the mirror image, which goes from the last line to the first:
//     g[t,i] = dh[t,i] + carry[t,i],    carry[t-1,i] = w0[t,i+1]·g[t,i+1] + w1[t,i]·g[t,i] + w2[t,i-1]·g[t,i-1]
// `state` is carry[t] before and carry[t-1] after, `line` is dh before and g[t] after. Each row multiplies its own weights by its
// own g and hands the products on, so that no weight is wanted twice.
//
// What a line that restarts had before it does not count. The rows above and below are the neighbouring lanes'. All lanes of the
// warp take part. Ragged: only the first `exist` rows are in the image.
template <bool Adjoint, bool Ragged = false, int Rows>
__device__ __forceinline__ void scan_line(State (&state)[Rows], const State (&taps)[3][Rows], State (&line)[Rows],
                                          bool restarts, bool has_above, bool has_below, int exist = Rows) {
  if constexpr (Adjoint) {
    State up[Rows], down[Rows];  // products for the rows above and below
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      line[r] = !Ragged || r < exist ? line[r] + (restarts ? State(0) : state[r]) : State(0);
      up[r] = multiply(taps[0][r], line[r]);
      down[r] = multiply(taps[2][r], line[r]);
    }
    const State from_above = __shfl_up_sync(0xffffffffu, down[Rows - 1], 1);
    const State from_below = __shfl_down_sync(0xffffffffu, up[0], 1);
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      const bool first = r == 0, last = r == Rows - 1;
      const bool above = !first || has_above, below = last ? has_below : !Ragged || r + 1 < exist;
      const State handed = (below ? last ? from_below : up[r + !last] : State(0)) +
                           (above ? first ? from_above : down[r - !first] : State(0));
      state[r] = multiply_add(taps[1][r], line[r], handed);
    }
  } else {
    if (!restarts) {
      const State above = __shfl_up_sync(0xffffffffu, state[Rows - 1], 1);
      const State below = __shfl_down_sync(0xffffffffu, state[0], 1);
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
        const bool first = r == 0, last = r == Rows - 1;
        line[r] = multiply_add(taps[1][r], state[r], line[r]);
        if (last ? has_below : !Ragged || r + 1 < exist) {
          line[r] = multiply_add(taps[2][r], last ? below : state[r + !last], line[r]);
        }
        if (!first || has_above) line[r] = multiply_add(taps[0][r], first ? above : state[r - !first], line[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < Rows; ++r) state[r] = line[r] = !Ragged || r < exist ? line[r] : State(0);
  }
}

}  // namespace gspn2
