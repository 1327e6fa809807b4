// What a lane does with a line of the scan: some neighbouring rows of one channel, whose state stays in registers.
#pragma once

#include <cuda_bf16.h>

#include "state.cuh"

namespace gspn2 {

template <typename A, typename B>
constexpr bool SAME = false;
template <typename A>
constexpr bool SAME<A, A> = true;

// Neighbouring elements of an array, read and written 16 bytes at a time where there are as many.
template <typename T, int Count>
struct alignas(Count * sizeof(T) < 16 ? Count * sizeof(T) : 16) Pack {
  T value[Count];

  // An element in the state's type; bfloat16 from the word it lies in, by one instruction instead of two.
  __device__ __forceinline__ State widened(int k) const {
    if (!SAME<T, __nv_bfloat16> || Count % 2) return widen(value[k]);
    unsigned word;
    memcpy(&word, &value[k & ~1], 4);
    return __uint_as_float(k % 2 ? word & 0xffff0000u : word << 16);
  }
};

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
