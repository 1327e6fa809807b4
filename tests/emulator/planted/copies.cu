// y = x reversed in tiles of 32 floats, staged by asynchronous copies, the next tile on its way while one is used.
#include "emulated_primitives.hpp"

enum Bug {
  none,
  no_wait,          // a tile is used while it is still on its way
  waits_for_less,   // ... because the wait lets one group too many go on
  no_barrier,       // waited for by each thread, but read by others
  overwrites_tile,  // the next copy starts into a tile that others still read
  never_waited,     // a copy is left over at the end
  copied_twice,     // two copies into one place are on their way at once
  misaligned,
  reads_past_end,
};

struct Plan {
  long long count;
};

constexpr int kTile = 32, kThreads = 8;

__device__ __forceinline__ void fetch(float* tile, const float* x, long long first, long long count) {
  const long long i = first + 4 * threadIdx.x;
  const bool exists = i < count || BUG == reads_past_end;
  gspn2::copy_piece<16, 256>(true, tile + 4 * threadIdx.x, x + i + (BUG == misaligned), exists);
  gspn2::copy_piece<16, 256>(BUG == copied_twice, tile + 4 * threadIdx.x, x + i, exists);
  gspn2::copy_async_commit();
}

extern "C" __global__ void reverse_tiles(const float* x, float* y, Plan plan) {
  float* tiles = gspn2::dynamic_shared<float>();
  const long long count = plan.count;
  fetch(tiles, x, 0, count);
  int stage = 0;
  for (long long first = 0; first < count; first += kTile) {
    const bool more = first + kTile < count;
    if (more || BUG == never_waited) fetch(tiles + (1 - stage) * kTile, x, first + kTile, count);
    if (BUG != no_wait) {
      if (more || BUG == never_waited)
        gspn2::copy_async_wait<BUG == waits_for_less ? 2 : 1>();
      else
        gspn2::copy_async_wait<0>();
    }
    if (BUG != no_barrier) __syncthreads();
    for (int k = threadIdx.x; k < kTile; k += kThreads)
      if (first + k < count) y[first + k] = tiles[stage * kTile + kTile - 1 - k];
    if (BUG != overwrites_tile) __syncthreads();
    stage = 1 - stage;
  }
}
