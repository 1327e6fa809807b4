// Two groups of two warps each: a group's warps hand a value to each other through shared memory, round after round, and meet at
// a barrier of their own in between.
#include "emulated_primitives.hpp"

enum Bug {
  none,
  no_meeting,   // nobody waits
  other_group,  // one warp of each group waits with the other group
  one_buffer,   // written again while it is still read
  too_few,      // the barrier opens when half of the group is there
  left_behind,  // a warp leaves a round early
};

struct Plan {
  long long rounds;
};

extern "C" __global__ void swap_in_groups(const float* x, float* y, Plan plan) {
  __shared__ float cells[2][128];
  const int warp = threadIdx.x / 32, group = warp / 2, partner = threadIdx.x ^ 32;
  float value = x[threadIdx.x];
  const long long rounds = plan.rounds - (BUG == left_behind && warp == 3);
  for (int round = 0; round < rounds; ++round) {
    float* const now = cells[BUG == one_buffer ? 0 : round % 2];
    now[threadIdx.x] = value;
    if (BUG != no_meeting) {
      gspn2::group_sync(1 + (BUG == other_group && warp % 2 ? 1 - group : group), BUG == too_few ? 32 : 64);
    }
    value = now[partner] + 1.0f;
  }
  y[threadIdx.x] = value;
}
