// What a lane does with a line of the scan: some neighbouring rows of one channel, whose state stays in registers.
#pragma once

#include "pack.cuh"

namespace gspn2 {

// h[t,i] = w0[t,i]·h[t-1,i-1] + w1[t,i]·h[t-1,i] + w2[t,i]·h[t-1,i+1] + signal[t,i], where signal = λ·x, for a lane's rows.
// `state` is h[t-1] before and h[t] after. The rows above and below are the neighbouring lanes'. All lanes of the warp take
// part. Ragged: only the first `exist` rows are in the image.
template <bool Ragged = false, int Rows>
__device__ __forceinline__ void scan_line(State (&state)[Rows], const State (&taps)[3][Rows],
                                          const State (&signal)[Rows], bool restarts, bool has_above, bool has_below,
                                          int exist = Rows) {
  State line[Rows];
#pragma unroll
  for (int r = 0; r < Rows; ++r) line[r] = signal[r];
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
  for (int r = 0; r < Rows; ++r) state[r] = !Ragged || r < exist ? line[r] : State(0);
}

}  // namespace gspn2
