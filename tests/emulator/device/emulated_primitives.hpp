// Host twins of cuda/primitives.cuh. What the inline PTX there does is written here as we understand it: a mistake in
// that belief is the one thing that emulation cannot show.
#pragma once

#include "cuda_shim.hpp"

namespace gspn2 {

template <typename T>
__forceinline__ T* dynamic_shared() {
  return static_cast<T*>(emulator::dynamic_shared_memory());
}

template <typename T>
__forceinline__ T* kept(T* shared) {
  return shared;
}

__forceinline__ int anew(int number) {
  return number;
}

template <typename Piece>
__forceinline__ void write_shared(bool wanted, Piece* shared, const Piece& piece) {
  static_assert(sizeof(Piece) == 2 || sizeof(Piece) == 4 || sizeof(Piece) == 8 || sizeof(Piece) == 16);
  if (wanted) *shared = piece;
}

template <typename Piece>
__forceinline__ void read_shared(bool wanted, Piece& piece, const Piece* shared) {
  static_assert(sizeof(Piece) == 4 || sizeof(Piece) == 8 || sizeof(Piece) == 16);
  if (wanted) piece = *shared;
}

template <typename Piece>
__forceinline__ void write_global(bool wanted, Piece* global, const Piece& piece) {
  static_assert(sizeof(Piece) == 2 || sizeof(Piece) == 4 || sizeof(Piece) == 8 || sizeof(Piece) == 16);
  if (wanted) *global = piece;
}

template <typename T>
__forceinline__ T reciprocal(T value) {
  return 1 / value;
}

// One call site for all, so that warps may meet here from different places.
__forceinline__ void block_sync() {
  __syncthreads();
}

__forceinline__ void group_sync(int barrier, int threads, EMULATOR_SITE) {
  emulator::group_barrier(barrier, threads, {file, line});
}

// cp.async, which fills with zeros what it does not read; two bytes are copied at once.
template <int kBytes, int kAround>
__forceinline__ void copy_piece(bool wanted, void* shared, const void* global, bool exists, EMULATOR_SITE) {
  static_assert(kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes == 16);
  if (!wanted) return;
  if (kBytes == 2) {
    *static_cast<unsigned short*>(shared) = exists ? *static_cast<const unsigned short*>(global) : 0;
  } else {
    emulator::copy_async(shared, global, kBytes, exists ? kBytes : 0, {file, line});
  }
}
__forceinline__ void in_order() {}
template <int kBytes>
__forceinline__ void copy_out(bool wanted, void* global, const void* shared) {
  static_assert(kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes == 16);
  if (!wanted) return;
  if constexpr (kBytes == 16) *static_cast<uint4*>(global) = *static_cast<const uint4*>(shared);
  if constexpr (kBytes == 8) *static_cast<uint2*>(global) = *static_cast<const uint2*>(shared);
  if constexpr (kBytes == 4) *static_cast<unsigned*>(global) = *static_cast<const unsigned*>(shared);
  if constexpr (kBytes == 2) *static_cast<unsigned short*>(global) = *static_cast<const unsigned short*>(shared);
}
template <int kBytes>
__forceinline__ void copy_async(void* shared, const void* global, EMULATOR_SITE) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  emulator::copy_async(shared, global, kBytes, kBytes, {file, line});
}

__forceinline__ void copy_async_commit() {
  emulator::copy_async_commit();
}

// Waits until all but the kGroupsLeft youngest groups of this thread's copies are done.
template <int kGroupsLeft>
__forceinline__ void copy_async_wait() {
  emulator::copy_async_wait(kGroupsLeft);
}

// A relaxed 8-byte store that other blocks of a cooperative launch see whole, and the wait for a word whose high half
// is `tag`. Neither orders any other memory.
__forceinline__ void publish(bool wanted, unsigned long long* slot, unsigned long long value) {
  if (wanted) emulator::publish(slot, value);
}
template <int kCount>
__forceinline__ void await_tags(bool wanted, const unsigned long long* slots, unsigned tag,
                                unsigned long long (&words)[kCount], EMULATOR_SITE) {
  for (int k = 0; k < kCount && wanted; ++k) words[k] = emulator::await_tag(slots + k, tag, {file, line});
  __all_sync(0xffffffffu, true, file, line);
}

template <typename T>
__forceinline__ T* in_block_of_cluster(T* shared, int rank, EMULATOR_SITE) {
  return static_cast<T*>(emulator::cluster_address(shared, rank, {file, line}));
}
__forceinline__ void cluster_sync(EMULATOR_SITE) {
  emulator::cluster_barrier({file, line});
}

}  // namespace gspn2
