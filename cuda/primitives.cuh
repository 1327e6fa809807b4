// The few things that plain C++ cannot say, as small functions. Everything else under cuda/ is free of inline PTX and of
// __CUDA_ARCH__, so that the same sources also run on a CPU: there GSPN2_EMULATED replaces this file's contents by host
// twins of the same functions (tests/emulator/device/emulated_primitives.hpp).
#pragma once

#ifdef GSPN2_EMULATED
#include "emulated_primitives.hpp"
#else

namespace gspn2 {

// The block's dynamic shared memory, as large as the launch asked for, aligned to 16 bytes.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char gspn2_dynamic_shared[];
  return reinterpret_cast<T*>(gspn2_dynamic_shared);
}

// Wait for every thread of the block. Unlike __syncthreads it may be called by each warp from a place of its own.
__device__ __forceinline__ void block_sync() {
  asm volatile("barrier.sync 0;" ::: "memory");
}

// Wait for `threads` threads of the block, whole warps, that all name the same barrier (1 to 15).
__device__ __forceinline__ void group_sync(int barrier, int threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// --- asynchronous copies from global to shared memory (sm_80) ---------------------------------------------------------

// Start copying 16 bytes, both ends aligned to 16. Only the first `valid_bytes` are read; the rest becomes 0. The `Around` bytes
// (64, 128 or 256) that hold them are asked into L2: on an H200, rows read 64 bytes at a time came at 0.59 of a copy's speed
// without, 0.92 with 256.
template <int Around>
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, int valid_bytes) {
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if (Around == 256) {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(target), "l"(global), "r"(valid_bytes)
                 : "memory");
  } else if (Around == 128) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(global), "r"(valid_bytes)
                 : "memory");
  } else {
    static_assert(Around == 64 || Around == 128 || Around == 256, "what PTX knows");
    asm volatile("cp.async.cg.shared.global.L2::64B [%0], [%1], 16, %2;" ::"r"(target), "l"(global), "r"(valid_bytes)
                 : "memory");
  }
}

// Start copying a few bytes, both ends aligned to as many.
template <int Bytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(target), "l"(global), "n"(Bytes) : "memory");
  }
}

// Close the group of copies that this thread has started since the last one.
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Wait until all but the youngest `Pending` groups of this thread have arrived.
template <int Pending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// --- words between blocks that run at the same time -------------------------------------------------------------------

// Put a word where another block awaits it, in global memory or in the shared memory of the same cluster. The value travels
// inside the word, so no fence is needed.
__device__ __forceinline__ void publish(unsigned long long* slot, unsigned long long word) {
  asm volatile("st.relaxed.gpu.u64 [%0], %1;" ::"l"(slot), "l"(word) : "memory");
}

// Wait until the upper half of a word is `tag`, and return the word.
__device__ __forceinline__ unsigned long long await_tag(const unsigned long long* slot, unsigned tag) {
  unsigned long long word;
  do {
    asm volatile("ld.relaxed.gpu.u64 %0, [%1];" : "=l"(word) : "l"(slot) : "memory");
  } while (static_cast<unsigned>(word >> 32) != tag);
  return word;
}

// --- clusters: blocks that run at the same time and reach each other's shared memory (sm_90) --------------------------

// The place in another block's shared memory that corresponds to a place in this block's.
template <typename T>
__device__ __forceinline__ T* in_block_of_cluster(T* shared, int rank) {
  unsigned long long there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(shared), "r"(rank));
  return reinterpret_cast<T*>(there);
}

// Wait for every thread of the cluster; what was written before is seen after.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

}  // namespace gspn2

#endif
