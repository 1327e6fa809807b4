// Correct kernels that use what CUDA offers once each; the tests know the results.
#include "emulated_primitives.hpp"

struct Plan {
  long long width;
};

// One row of y per operation, one column per lane.
extern "C" __global__ void warp_operations(const int* x, int* y, Plan plan) {
  const int lane = threadIdx.x, width = static_cast<int>(plan.width);
  const unsigned all = 0xffffffffu;
  const int value = x[lane];
  y[lane] = __shfl_sync(all, value, lane + 3, width);
  y[32 + lane] = __shfl_up_sync(all, value, 2, width);
  y[64 + lane] = __shfl_down_sync(all, value, 5, width);
  y[96 + lane] = __shfl_xor_sync(all, value, 6, width);
  y[128 + lane] = static_cast<int>(__ballot_sync(all, value % 2));
  y[160 + lane] = __any_sync(all, value == 7);
  y[192 + lane] = __all_sync(all, value < 32);
  y[224 + lane] = __syncthreads_count(value % 3 == 0);
  y[256 + lane] = __syncthreads_or(value == 40) + 2 * __syncthreads_and(value < 32);
  // Two groups of lanes at once, and a value of 8 bytes.
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  y[288 + lane] = static_cast<int>(__shfl_sync(half, static_cast<long long>(value) << 32, lane < 16 ? 2 : 30) >> 32);
}

extern "C" __global__ void atomics(int* y, double* sum, unsigned long long* largest) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(y, i);
  atomicMax(y + 1, i);
  atomicMin(y + 2, -i);
  atomicOr(y + 3, 1 << i % 8);
  if (i == 5) atomicExch(y + 4, 17);
  int seen = 0;
  while (true) {  // counts by compare-and-swap
    const int before = atomicCAS(y + 5, seen, seen + 1);
    if (before == seen) break;
    seen = before;
  }
  atomicAdd(sum, 0.5);
  atomicMax(largest, static_cast<unsigned long long>(i) << 40);
}

template <typename T>
__device__ float wide(T value);
template <>
__device__ float wide(__half value) {
  return __half2float(value);
}
template <>
__device__ float wide(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

// 16-byte groups of 16-bit numbers: y = 2 x + 1, rounded once.
extern "C" __global__ void narrow(const SCALAR* x, SCALAR* y, long long* numbers) {
  struct __align__(16) Vector {
    SCALAR v[8];
  };
  __shared__ Vector stage[4];
  stage[threadIdx.x] = reinterpret_cast<const Vector*>(x)[threadIdx.x];
  Vector result;
  for (int k = 0; k < 8; ++k) {
    const float value = fmaf(wide(stage[threadIdx.x].v[k]), 2.0f, 1.0f);
    result.v[k] = static_cast<SCALAR>(value);
  }
  reinterpret_cast<Vector*>(y)[threadIdx.x] = result;
  if (numbers) numbers[threadIdx.x] = static_cast<long long>(threadIdx.x) << 40;
}

// A view with any strides: y = x + 1, element by element.
extern "C" __global__ void strided(const double* x, double* y, Plan plan) {
  const long long i = static_cast<long long>(threadIdx.x) * plan.width;
  y[i] = x[i] + 1.0;
}
