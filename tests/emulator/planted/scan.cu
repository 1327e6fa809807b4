// A line scan in one block: h[t,i] = (h[t-1,i-1] + h[t-1,i] + h[t-1,i+1]) / 4 + x[t,i], thread i on row i, the previous
// line in shared memory. BUG names what is wrong with it.
#include "emulated_primitives.hpp"

enum Bug {
  none,
  no_barrier,       // a line is read while others still write it
  single_buffer,    // a line is overwritten while others still read it
  other_barrier,    // threads wait in two different barriers
  no_first_line,    // the line before the first is never written
  reads_past_end,   // of x, by one element, into a value that nobody uses
  static_overflow,  // writes behind a static shared array
};

struct Plan {
  long long lines, width;
};

extern "C" __global__ void scan(const float* x, float* h, Plan plan) {
  float* shared = gspn2::dynamic_shared<float>();
  __shared__ float guard[4];
  const int i = threadIdx.x, width = static_cast<int>(plan.width);
  if (BUG != no_first_line) shared[i] = 0.0f;
  if (i < 4) guard[BUG == static_overflow ? i + 4096 : i] = 0.0f;
  __syncthreads();
  for (int t = 0; t < plan.lines; ++t) {
    const float* before = shared + (BUG == single_buffer ? 0 : t % 2 * width);
    float* now = shared + (BUG == single_buffer ? 0 : (t + 1) % 2 * width);
    float sum = before[i] + guard[i % 4];
    if (i > 0) sum += before[i - 1];
    if (i + 1 < width) sum += before[i + 1];
    float value = sum * 0.25f + x[t * width + i];
    if (BUG == reads_past_end) value += x[t * width + i + 1] == 12345.0f ? 1e-30f : 0.0f;
    now[i] = value;
    h[t * width + i] = value;
    if (BUG == other_barrier) {
      if (i < width / 2)
        __syncthreads();
      else
        __syncthreads();
    } else if (BUG != no_barrier) {
      __syncthreads();
    }
  }
}
