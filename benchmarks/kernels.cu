// What the benchmarks themselves run on the GPU: random inputs, the yardstick copy, a look at outputs, a plain sum.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef unsigned int u32;
typedef long long i64;

// Uniform in [low, high), a hash of seed and place.
extern "C" __global__ void fill(SCALAR* out, i64 count, i64 seed, double low, double high) {
  for (i64 i = blockIdx.x * i64(blockDim.x) + threadIdx.x; i < count; i += i64(gridDim.x) * blockDim.x) {
    u32 v = u32(i) * 2654435761u + u32(i >> 32) * 40503u + u32(seed) * 2246822519u;
    v = (v ^ v >> 15) * 2246822519u;
    v = (v ^ v >> 13) * 3266489917u;
    out[i] = SCALAR(float(low + (high - low) * ((v ^ v >> 16) >> 8) * (1.0 / (1 << 24))));
  }
}

// How many elements are NaN: poison that was never written over.
extern "C" __global__ void count_nans(const SCALAR* in, i64 count, unsigned long long* total) {
  u32 found = 0;
  for (i64 i = blockIdx.x * i64(blockDim.x) + threadIdx.x; i < count; i += i64(gridDim.x) * blockDim.x) {
    const float value = float(in[i]);
    found += value != value;
  }
  if (found) atomicAdd(total, found);
}

// out[p, r, c] = in[p, first_row + r, first_column + c] of planes of height x width.
extern "C" __global__ void crop(const SCALAR* in, SCALAR* out, i64 planes, i64 height, i64 width, i64 first_row,
                                i64 first_column, i64 rows, i64 columns) {
  const i64 count = planes * rows * columns;
  for (i64 i = blockIdx.x * i64(blockDim.x) + threadIdx.x; i < count; i += i64(gridDim.x) * blockDim.x) {
    const i64 column = i % columns, row = i / columns % rows, plane = i / (columns * rows);
    out[i] = in[(plane * height + first_row + row) * width + first_column + column];
  }
}

// The yardstick: count vectors read, count written. Four independent loads in flight per thread.
extern "C" __global__ void copy_blocks(const float4* in, float4* out, i64 count) {
  const i64 first = blockIdx.x * 1024ll + threadIdx.x;
  float4 v[4];
#pragma unroll
  for (int k = 0; k < 4; ++k)
    if (first + 256 * k < count) v[k] = in[first + 256 * k];
#pragma unroll
  for (int k = 0; k < 4; ++k)
    if (first + 256 * k < count) out[first + 256 * k] = v[k];
}

// The same with a fixed grid.
extern "C" __global__ void copy_strided(const float4* in, float4* out, i64 count) {
  for (i64 i = blockIdx.x * i64(blockDim.x) + threadIdx.x; i < count; i += i64(gridDim.x) * blockDim.x) out[i] = in[i];
}

// y = a + b + c + d: what a user writes after four scans.
extern "C" __global__ void sum_of_four(const SCALAR* a, const SCALAR* b, const SCALAR* c, const SCALAR* d, SCALAR* y,
                                       i64 count) {
  for (i64 i = blockIdx.x * i64(blockDim.x) + threadIdx.x; i < count; i += i64(gridDim.x) * blockDim.x)
    y[i] = SCALAR(float(a[i]) + float(b[i]) + float(c[i]) + float(d[i]));
}
