// Sums: of a block by a tree in shared memory, of all blocks by atomics, of a warp through shared memory and shuffles.
#include "emulated_primitives.hpp"

enum Bug {
  none,
  no_barrier,         // the tree starts before all values are there
  plain_add,          // += between blocks
  no_syncwarp,        // a warp's values are read before they are there
  wrong_mask,         // a shuffle by lanes that its mask does not name
  lane_missing,       // a shuffle that half of its lanes never come to
  divergent_barrier,  // only some lanes come to a barrier; the others wait for them in a shuffle
  uninitialised_local,
};

struct Plan {
  long long count;
};

extern "C" __global__ void block_sums(const float* x, float* total, Plan plan) {
  __shared__ float values[64];
  const int t = threadIdx.x;
  const long long i = blockIdx.x * static_cast<long long>(blockDim.x) + t;
  values[t] = i < plan.count ? x[i] : 0.0f;
  if (BUG != no_barrier) __syncthreads();
  for (int half = 32; half > 0; half /= 2) {
    if (t < half) values[t] += values[t + half];
    __syncthreads();
  }
  if (t != 0) return;
  if (BUG == plain_add)
    *total += values[0];
  else
    atomicAdd(total, values[0]);
}

// y[w] = sum of warp w's values, once through shared memory and once by shuffles: both halves of the result.
extern "C" __global__ void warp_sums(const float* x, float* y, Plan plan) {
  __shared__ float values[64];
  const int t = threadIdx.x, lane = t % 32, warp = t / 32;
  const float value = t < plan.count ? x[t] : 0.0f;
  values[t] = value;
  if (BUG != no_syncwarp) __syncwarp();
  float by_memory = 0.0f;
  if (BUG == uninitialised_local) {
    float never;
    asm volatile("" : "+m"(never));  // or g++ would see through it
    by_memory += never;
  }
  for (int k = 0; k < 32; ++k) by_memory += values[warp * 32 + k];
  if (BUG == divergent_barrier && lane < 16) __syncthreads();
  float by_shuffle = value;
  for (int delta = 16; delta > 0; delta /= 2) {
    if (BUG == lane_missing && lane >= 16) break;
    by_shuffle += __shfl_xor_sync(BUG == wrong_mask ? 0xffffu : 0xffffffffu, by_shuffle, delta);
  }
  if (lane == 0) y[warp] = by_memory + by_shuffle;
}
