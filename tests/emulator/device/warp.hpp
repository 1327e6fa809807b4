// Barriers, shuffles and votes.
#pragma once

inline void __syncthreads(EMULATOR_SITE) {
  emulator::block_barrier(emulator::Barrier::plain, false, {file, line});
}

inline int __syncthreads_count(int predicate, EMULATOR_SITE) {
  return emulator::block_barrier(emulator::Barrier::count, predicate != 0, {file, line});
}

inline int __syncthreads_or(int predicate, EMULATOR_SITE) {
  return emulator::block_barrier(emulator::Barrier::any_of, predicate != 0, {file, line});
}

inline int __syncthreads_and(int predicate, EMULATOR_SITE) {
  return emulator::block_barrier(emulator::Barrier::all_of, predicate != 0, {file, line});
}

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_SITE) {
  emulator::warp_meeting(emulator::Meeting::sync, mask, 0, 0, 32, {file, line});
}

namespace emulator {

template <typename T>
T shuffle(Meeting kind, unsigned mask, T value, int argument, int width, Site site) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>, "as in CUDA: at most 8 bytes");
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  bits = warp_meeting(kind, mask, bits, argument, width, site);
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulator

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, EMULATOR_SITE) {
  return emulator::shuffle(emulator::Meeting::shuffle, mask, value, lane, width, {file, line});
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_SITE) {
  return emulator::shuffle(emulator::Meeting::shuffle_up, mask, value, static_cast<int>(delta), width, {file, line});
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_SITE) {
  return emulator::shuffle(emulator::Meeting::shuffle_down, mask, value, static_cast<int>(delta), width, {file, line});
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMULATOR_SITE) {
  return emulator::shuffle(emulator::Meeting::shuffle_xor, mask, value, lanes, width, {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  const auto kind = emulator::Meeting::ballot;
  return static_cast<unsigned>(emulator::warp_meeting(kind, mask, predicate != 0, 0, 32, {file, line}));
}

inline int __any_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  const auto kind = emulator::Meeting::any_of;
  return static_cast<int>(emulator::warp_meeting(kind, mask, predicate != 0, 0, 32, {file, line}));
}

inline int __all_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  const auto kind = emulator::Meeting::all_of;
  return static_cast<int>(emulator::warp_meeting(kind, mask, predicate != 0, 0, 32, {file, line}));
}

[[noreturn]] inline void __trap(EMULATOR_SITE) {
  emulator::trap({file, line});
}
