// Blocks of a cooperative launch pass a sum along: block b adds x[b] to what block b-1 published. Block 0 goes first.
#include "emulated_primitives.hpp"

enum Bug {
  none,
  wrong_tag,   // waits for a word that nobody publishes
  plain_data,  // passes the sum beside the word, which orders no other memory
};

struct Plan {
  long long unused;
};

extern "C" __global__ void pass_along(const float* x, float* y, float* sums, unsigned long long* slots, Plan) {
  __shared__ float before;
  const unsigned b = blockIdx.x;
  const bool first = threadIdx.x == 0;
  unsigned long long word[1] = {0};
  if (b > 0 && threadIdx.x < 32) gspn2::await_tags(first, slots + b - 1, BUG == wrong_tag ? b + 7 : b, word);
  if (first) {
    before = b == 0 ? 0.0f : BUG == plain_data ? sums[b - 1] : __uint_as_float(static_cast<unsigned>(word[0]));
    const float sum = before + x[b];
    sums[b] = sum;
    gspn2::publish(true, slots + b, static_cast<unsigned long long>(b + 1) << 32 | __float_as_uint(sum));
  }
  __syncthreads();
  y[b * blockDim.x + threadIdx.x] = before;
}
