// What the probes of memory.cu and latency.cu share: inline PTX and the step of the line scan (compute capability 9.0).
// All spins are bounded, so that a wait that fails is reported and never hangs.
#pragma once

using u32 = unsigned int;
using u64 = unsigned long long;

constexpr u32 kFull = 0xffffffffu;
constexpr int kStreams = 5;          // x, lambda, three weights
constexpr int kTries = 1 << 16;      // L2 polls, about 700 clocks each: 25 ms
constexpr int kNearTries = 1 << 19;  // polls of own shared memory, about 40 clocks each: 12 ms

__device__ __forceinline__ u64 global_nanoseconds() {
  u64 t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)::"memory");
  return t;
}
__device__ __forceinline__ u32 multiprocessor() {
  u32 id;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(id));
  return id;
}
__device__ __forceinline__ u32 cluster_rank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ u32 shared_address(const void* p) {
  return static_cast<u32>(__cvta_generic_to_shared(p));
}
// The same place in another block of the cluster; generic, which saves the store a conversion that ptxas puts in the loop.
template <typename T>
__device__ __forceinline__ T* remote(T* p, u32 rank) {
  T* there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(p), "r"(rank));
  return there;
}
__device__ __forceinline__ u32 remote_shared_address(const void* p, u32 rank) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(p)), "r"(rank));
  return there;
}
template <bool ORDERED = true>  // or only meet: no fence, no invalidation of L1
__device__ __forceinline__ void cluster_barrier() {
  if constexpr (ORDERED)
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  else
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}
__device__ __forceinline__ u64 load_l2(const u64* p) {
  u64 v;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void store_l2(u64* p, u64 v) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
__device__ __forceinline__ u32 load_word(const u32* p) {
  u32 v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ u64 load_near(const u64* p) {
  u64 v;
  asm volatile("ld.relaxed.cluster.shared::cta.u64 %0, [%1];" : "=l"(v) : "r"(shared_address(p)) : "memory");
  return v;
}
__device__ __forceinline__ float4 load_shared(const float4* p) {  // volatile, so that a loop repeats it
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(shared_address(p)));
  return v;
}
__device__ __forceinline__ void store_remote(u64* p, u64 v) {
  asm volatile("st.relaxed.cluster.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
__device__ __forceinline__ u64 tagged(float value, u32 epoch) {
  return u64(epoch) << 32 | __float_as_uint(value);
}

template <int PREFETCH>
__device__ __forceinline__ void copy_async(u32 to, const char* from) {
  if constexpr (PREFETCH == 0) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from));
  if constexpr (PREFETCH == 128)
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from));
  if constexpr (PREFETCH == 256)
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(to), "l"(from));
}

// The tensor engine: boxes of a map that the host has encoded, and barriers that count the bytes that have arrived.
struct alignas(64) TensorMap {
  char bytes[128];
};
__device__ __forceinline__ void start_barrier(u64* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void expect_bytes(u64* barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void await_bytes(u64* barrier, u32 parity) {
  u32 done = 0;
  for (int tries = 0; done == 0 && tries < kNearTries; ++tries)
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
}
__device__ __forceinline__ void load_box(void* to, const TensorMap& map, int x, int y, int z, u64* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::
          "r"(shared_address(to)),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_address(barrier))
      : "memory");
}
__device__ __forceinline__ void store_box(const TensorMap& map, const void* from, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(x),
               "r"(y), "r"(shared_address(from))
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Read without keeping lines in L1. KEEP: 0 as usual, 1 evict first from L2, 2 evict last.
template <int KEEP>
__device__ __forceinline__ float4 load_vector(const float4* p) {
  float4 v;
  if constexpr (KEEP == 0) {
    asm volatile("ld.global.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(p));
  } else {
    u64 policy;
    if constexpr (KEEP == 1) asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    if constexpr (KEEP == 2) asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("ld.global.L1::no_allocate.L2::cache_hint.v4.f32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(p), "l"(policy));
  }
  return v;
}

__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// Keep a result alive without ever writing it: no probe reaches this value.
__device__ __forceinline__ void keep(float value, float* sink) {
  if (value == -1.2345e30f) *sink = value;
}

// Wait until the streaming blocks of `traffic` run, then let their reads fill the memory system.
__device__ __forceinline__ void await_traffic(const u32* control, u32 expected) {
  for (int tries = 0; expected != 0 && tries < kTries && load_word(control) < expected; ++tries) {
  }
  for (const long long start = clock64(); expected != 0 && clock64() - start < 30000;) {
  }
  __syncthreads();
}

// One scan step for the lane's RL rows. b = lambda x. The outer neighbours' weights are 0 at the borders of the warp when
// TUNED; otherwise the shuffled value is selected away, and it enters the chain first.
template <int RL, bool TUNED>
__device__ __forceinline__ void step(float (&h)[RL], const float (&b)[RL], const float (&wl)[RL], const float (&wm)[RL],
                                     const float (&wr)[RL]) {
  float before = __shfl_up_sync(kFull, h[RL - 1], 1), after = __shfl_down_sync(kFull, h[0], 1), last = before;
  if constexpr (!TUNED) {
    if (threadIdx.x % 32 == 0) last = 0;
    if (threadIdx.x % 32 == 31) after = 0;
  }
#pragma unroll
  for (int r = 0; r < RL; ++r) {
    const float here = h[r], next = r + 1 < RL ? h[r + 1 < RL ? r + 1 : r] : after;
    if constexpr (!TUNED)
      h[r] = fmaf(wl[r], last, fmaf(wm[r], here, fmaf(wr[r], next, b[r])));
    else if (r + 1 < RL)
      h[r] = fmaf(wl[r], last, fmaf(wr[r], next, fmaf(wm[r], here, b[r])));
    else
      h[r] = fmaf(wr[r], next, fmaf(wl[r], last, fmaf(wm[r], here, b[r])));
    last = here;
  }
}
