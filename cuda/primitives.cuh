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

// The same pointer into shared memory, kept in a register: left to itself the compiler makes it anew, by dependent instructions,
// wherever it is used in a cluster.
template <typename T>
__device__ __forceinline__ T* kept(T* shared) {
  unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("" : "+r"(address));
  return reinterpret_cast<T*>(__cvta_shared_to_generic(address));
}

// The same number. What is made of it is made here, and not before a loop, from where it would have to wait in registers.
__device__ __forceinline__ int anew(int number) {
  asm volatile("" : "+r"(number));
  return number;
}

// Write 2, 4, 8 or 16 bytes to shared or to global memory if `wanted`, aligned to as many: by a predicate, where after a branch the
// compiler would guard every shuffle that follows.
#define GSPN2_WRITE(type, values, ...)                                                              \
  asm volatile("{ .reg .pred p; setp.ne.s32 p, %1, 0; @p st." GSPN2_SPACE "." type " [%0], " values \
               "; }" ::GSPN2_TARGET,                                                                \
               "r"(static_cast<int>(wanted)), __VA_ARGS__                                           \
               : "memory")
#define GSPN2_WRITE_PIECE                                                              \
  if constexpr (sizeof(Piece) == 2) {                                                  \
    GSPN2_WRITE("u16", "%2", "h"(reinterpret_cast<const unsigned short&>(piece)));     \
  } else if constexpr (sizeof(Piece) == 4) {                                           \
    GSPN2_WRITE("u32", "%2", "r"(reinterpret_cast<const unsigned&>(piece)));           \
  } else if constexpr (sizeof(Piece) == 8) {                                           \
    const uint2 v = reinterpret_cast<const uint2&>(piece);                             \
    GSPN2_WRITE("v2.u32", "{%2, %3}", "r"(v.x), "r"(v.y));                             \
  } else {                                                                             \
    static_assert(sizeof(Piece) == 16, "what one instruction writes");                 \
    const uint4 v = reinterpret_cast<const uint4&>(piece);                             \
    GSPN2_WRITE("v4.u32", "{%2, %3, %4, %5}", "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)); \
  }
#define GSPN2_SPACE "shared"
#define GSPN2_TARGET "r"(static_cast<unsigned>(__cvta_generic_to_shared(shared)))
template <typename Piece>
__device__ __forceinline__ void write_shared(bool wanted, Piece* shared, const Piece& piece){GSPN2_WRITE_PIECE}
#undef GSPN2_SPACE
#undef GSPN2_TARGET
#define GSPN2_SPACE "global"
#define GSPN2_TARGET "l"(global)
template <typename Piece>
__device__ __forceinline__ void write_global(bool wanted, Piece* global, const Piece& piece) {
  GSPN2_WRITE_PIECE
}
#undef GSPN2_SPACE
#undef GSPN2_TARGET
#undef GSPN2_WRITE_PIECE
#undef GSPN2_WRITE

// Read 4, 8 or 16 bytes from shared memory if `wanted`, or leave the piece as it is; by a predicate, as above.
template <typename Piece>
__device__ __forceinline__ void read_shared(bool wanted, Piece& piece, const Piece* shared) {
  const unsigned source = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int p = static_cast<int>(wanted);
  if constexpr (sizeof(Piece) == 4) {
    unsigned& v = reinterpret_cast<unsigned&>(piece);
    asm volatile("{ .reg .pred p; setp.ne.s32 p, %2, 0; @p ld.shared.u32 %0, [%1]; }"
                 : "+r"(v)
                 : "r"(source), "r"(p)
                 : "memory");
  } else if constexpr (sizeof(Piece) == 8) {
    uint2& v = reinterpret_cast<uint2&>(piece);
    asm volatile("{ .reg .pred p; setp.ne.s32 p, %3, 0; @p ld.shared.v2.u32 {%0, %1}, [%2]; }"
                 : "+r"(v.x), "+r"(v.y)
                 : "r"(source), "r"(p)
                 : "memory");
  } else {
    static_assert(sizeof(Piece) == 16, "what one instruction reads");
    uint4& v = reinterpret_cast<uint4&>(piece);
    asm volatile("{ .reg .pred p; setp.ne.s32 p, %5, 0; @p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4]; }"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
                 : "r"(source), "r"(p)
                 : "memory");
  }
}

// 1 / value, rounded, for values of 2^-100 to 2^100: what the compiler makes of the division, without its branch for others.
__device__ __forceinline__ float reciprocal(float value) {
  float near;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(near) : "f"(value));
  return fmaf(near, fmaf(-value, near, 1.0f), near);
}
__device__ __forceinline__ double reciprocal(double value) {
  return 1 / value;
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

// Start copying a piece of Bytes (4, 8 or 16) if `wanted`, both ends aligned to as many; one that does not exist becomes 0. The
// `Around` bytes (64, 128 or 256) that hold it are asked into L2: on an H200, rows read 64 bytes at a time came at 0.59 of a
// copy's speed without, 0.92 with 256. A predicate, and no branch: a copying thread starts dozens of them in a row. Two bytes
// are too few for an asynchronous copy, and have been copied when the call returns.
#define GSPN2_COPY_PIECE(cache, bytes, around)                                                         \
  asm volatile("{ .reg .pred p; setp.ne.s32 p, %2, 0; @p cp.async." cache ".shared.global.L2::" around \
               "B [%0], [%1], " bytes ", %3; }" ::"r"(target),                                         \
               "l"(global), "r"(static_cast<int>(wanted)), "r"(exists ? Bytes : 0)                     \
               : "memory")
#define GSPN2_COPY_PIECES(around)                                                       \
  if constexpr (Bytes == 16 && Around == around) GSPN2_COPY_PIECE("cg", "16", #around); \
  if constexpr (Bytes == 8 && Around == around) GSPN2_COPY_PIECE("ca", "8", #around);   \
  if constexpr (Bytes == 4 && Around == around) GSPN2_COPY_PIECE("ca", "4", #around)
template <int Bytes, int Around>
__device__ __forceinline__ void copy_piece(bool wanted, void* shared, const void* global, bool exists) {
  static_assert(Bytes == 2 || Bytes == 4 || Bytes == 8 || Bytes == 16, "a piece");
  static_assert(Around == 64 || Around == 128 || Around == 256, "what PTX knows");
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (Bytes == 2) {
    const unsigned short value = exists ? *static_cast<const unsigned short*>(global) : 0;
    if (wanted) *static_cast<unsigned short*>(shared) = value;
  }
  GSPN2_COPY_PIECES(64);
  GSPN2_COPY_PIECES(128);
  GSPN2_COPY_PIECES(256);
}
#undef GSPN2_COPY_PIECES
#undef GSPN2_COPY_PIECE

// Keep the compiler from moving reads and writes across: those of many pieces would wait in registers.
__device__ __forceinline__ void in_order() {
  asm volatile("" ::: "memory");
}

// Copy a piece from shared to global memory if `wanted`, both ends aligned to its Bytes; by predicates, as above.
#define GSPN2_COPY_OUT(registers, type, values)                                                                      \
  asm volatile("{ .reg .pred p; .reg ." registers " a, b, c, d; setp.ne.s32 p, %2, 0; @p ld.shared." type " " values \
               ", [%1]; @p st.global." type " [%0], " values "; }" ::"l"(global),                                    \
               "r"(source), "r"(static_cast<int>(wanted))                                                            \
               : "memory")
template <int Bytes>
__device__ __forceinline__ void copy_out(bool wanted, void* global, const void* shared) {
  static_assert(Bytes == 2 || Bytes == 4 || Bytes == 8 || Bytes == 16, "a piece");
  const unsigned source = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (Bytes == 16) GSPN2_COPY_OUT("u32", "v4.u32", "{a, b, c, d}");
  if constexpr (Bytes == 8) GSPN2_COPY_OUT("u32", "v2.u32", "{a, b}");
  if constexpr (Bytes == 4) GSPN2_COPY_OUT("u32", "u32", "a");
  if constexpr (Bytes == 2) GSPN2_COPY_OUT("u16", "u16", "a");
}
#undef GSPN2_COPY_OUT

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

// Put a word where another block awaits it, if `wanted`: in global memory or in the shared memory of the same cluster. The value
// travels inside the word, so no fence is needed.
__device__ __forceinline__ void publish(bool wanted, unsigned long long* slot, unsigned long long word) {
  asm volatile("{ .reg .pred p; setp.ne.s32 p, %2, 0; @p st.relaxed.gpu.u64 [%0], %1; }" ::"l"(slot), "l"(word),
               "r"(static_cast<int>(wanted))
               : "memory");
}

// Wait until the upper half of each of the neighbouring words of all lanes that want some is `tag`. All lanes of the warp take part
// and leave together: after a loop that each leaves by itself they would have to be waited for.
template <int Count>
__device__ __forceinline__ void await_tags(bool wanted, const unsigned long long* slots, unsigned tag,
                                           unsigned long long (&words)[Count]) {
  bool all;
  do {  // all of them are on their way at once
#pragma unroll
    for (int k = 0; k < Count; ++k) {
      words[k] = static_cast<unsigned long long>(tag) << 32;
      asm volatile("{ .reg .pred p; setp.ne.s32 p, %2, 0; @p ld.relaxed.gpu.u64 %0, [%1]; }"
                   : "+l"(words[k])
                   : "l"(slots + k), "r"(static_cast<int>(wanted))
                   : "memory");
    }
    all = true;
#pragma unroll
    for (int k = 0; k < Count; ++k) all = all && static_cast<unsigned>(words[k] >> 32) == tag;
  } while (!__all_sync(0xffffffffu, all));
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
