// Every block of a cluster adds up, thread by thread, what all of them keep in their shared memory.
#include "emulated_primitives.hpp"

enum Bug {
  none,
  no_barrier,    // of the cluster: a barrier of the block does not wait for the others
  leaves_early,  // a block returns while others still read its shared memory
  plain_word,    // a word for another block is emptied without a barrier before it is published
  outside,       // a rank that the cluster does not have
};

struct Plan {
  long long unused;
};

extern "C" __global__ void cluster_sums(const float* x, float* y, Plan) {
  float* mine = gspn2::dynamic_shared<float>();
  auto* word = reinterpret_cast<unsigned long long*>(mine + blockDim.x);
  const int i = blockIdx.x * blockDim.x + threadIdx.x, rank = blockIdx.x % CLUSTER;
  mine[threadIdx.x] = x[i];
  if (threadIdx.x == 0) *word = 0;
  if (BUG == no_barrier || BUG == plain_word) {
    __syncthreads();
  } else {
    gspn2::cluster_sync();
  }
  // The neighbour's word brings its rank; a block has it from the one before, in a circle.
  if (threadIdx.x < 32) {
    const bool first = threadIdx.x == 0;
    gspn2::publish(first, gspn2::in_block_of_cluster(word, (rank + 1) % CLUSTER), 1ull << 32 | rank);
    unsigned long long arrived[1];
    gspn2::await_tags(first, word, 1, arrived);
  }
  if (BUG == plain_word) gspn2::cluster_sync();
  float sum = 0.0f;
  for (int r = 0; r < CLUSTER; ++r) sum += gspn2::in_block_of_cluster(mine, r + (BUG == outside))[threadIdx.x];
  y[i] = sum;
  if (BUG != leaves_early) gspn2::cluster_sync();
}
