// Neighbouring elements of an array, in registers.
#pragma once

#include "state.cuh"

namespace gspn2 {

template <typename A, typename B>
constexpr bool SAME = false;
template <typename A>
constexpr bool SAME<A, A> = true;

// A if the condition holds, else B.
template <bool Condition, typename A, typename B>
struct Choice {
  using Type = A;
};
template <typename A, typename B>
struct Choice<false, A, B> {
  using Type = B;
};

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

// Neighbouring elements in memory, aligned to 16 bytes or to all of them.
template <int Count, typename T>
__device__ __forceinline__ Pack<T, Count> read_pack(const T* from) {
  constexpr int PART = Count * sizeof(T) > 16 ? 16 / sizeof(T) : Count;
  Pack<T, Count> result;
#pragma unroll
  for (int k = 0; k < Count; k += PART) {
    reinterpret_cast<Pack<T, PART>&>(result.value[k]) = *reinterpret_cast<const Pack<T, PART>*>(from + k);
  }
  return result;
}
template <typename T, int Count>
__device__ __forceinline__ void write_pack(T* to, const Pack<T, Count>& pack) {
  constexpr int PART = Count * sizeof(T) > 16 ? 16 / sizeof(T) : Count;
#pragma unroll
  for (int k = 0; k < Count; k += PART) {
    *reinterpret_cast<Pack<T, PART>*>(to + k) = reinterpret_cast<const Pack<T, PART>&>(pack.value[k]);
  }
}

}  // namespace gspn2
