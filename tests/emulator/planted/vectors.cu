// Copies count floats, four at a time, by the threads of one block.
#include "emulated_primitives.hpp"

enum Bug {
  none,
  misaligned_load,
  misaligned_store,
  store_past_end,
  writes_input,
  null_pointer,
  index_outside_array,    // of a local array, at an index the compiler cannot see
  stack_overflow_by_one,  // the same through a pointer, which only AddressSanitizer sees
  signed_overflow,
};

struct Plan {
  long long count, large;
};

extern "C" __global__ void copy(const float* x, float* y, Plan plan) {
  const long long i = 4 * static_cast<long long>(threadIdx.x);
  if (i >= plan.count) return;
  if (BUG == null_pointer) x = nullptr;
  const float4 value = *reinterpret_cast<const float4*>(x + i + (BUG == misaligned_load && i + 5 <= plan.count));
  const long long shift = BUG == misaligned_store ? 1 : BUG == store_past_end ? 4 : 0;
  float4* target = reinterpret_cast<float4*>(y + i + (i + 4 == plan.count ? shift : 0));
  *target = value;
  if (BUG == writes_input && i == 0) const_cast<float*>(x)[0] = 1.0f;
  if (BUG == index_outside_array || BUG == stack_overflow_by_one) {
    float local[4] = {value.x, value.y, value.z, value.w};
    float* element = local;
    asm volatile("" : "+r"(element));
    if (BUG == index_outside_array)
      y[i] = local[plan.count] > 0.0f ? 1.0f : 0.0f;
    else
      y[i] = element[plan.large - 2147483647 + 4] > 0.0f ? 1.0f : 0.0f;
  }
  if (BUG == signed_overflow) y[i] = static_cast<float>(static_cast<int>(plan.large) + static_cast<int>(plan.count));
}
