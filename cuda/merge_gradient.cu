// The gradient of one direction's merge weight, the sum over all pixels of all channels:
//
//     dm = Σ dy ⊙ u ⊙ h
//
// First `merge_gradient_partials`: each block sums its share, a thread every (blocks·THREADS)-th pixel in image order, and the
// block's sums pair by pair. Then `merge_gradient`, one block, sums the blocks' sums in the same way. Sums are carried in
// double. Their order follows from the number of pixels alone: not from strides, device or schedule.
// Bytes moved per pixel and channel: dy, u, h in.
// Specialised by SCALAR (dy, u, dm), HIDDEN (h), STATE, THREADS (a power of 2).
#include "geometry.cuh"
#include "primitives.cuh"
#include "state.cuh"

using namespace gspn2;

// Sum a value of each thread of the block; thread 0 has the result.
__device__ __forceinline__ double block_sum(double value) {
  double* sums = dynamic_shared<double>();  // [THREADS]
  sums[threadIdx.x] = value;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  return sums[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(THREADS)
    merge_gradient_partials(const SCALAR* dy,  // [B, C, H, W]
                            const SCALAR* u,   // [B, C, H, W] or null: 1
                            const HIDDEN* h,   // [B, C, H, W]
                            double* partials,  // [blocks]
                            const MergeGeometry geometry) {
  const long long pixels = geometry.scan.pixels();
  double sum = 0;
  for (long long number = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x; number < pixels;
       number += geometry.partials * THREADS) {
    const Place place(geometry.scan, number);
    const double product = widen(dy[place.in(geometry.dy)]) * widen(h[place.in(geometry.h)]);
    const double modulation = u ? widen(u[place.in(geometry.u)]) : State(1);
    sum = multiply_add(product, modulation, sum);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) merge_gradient(const double* partials,  // [blocks]
                                                                     SCALAR* dm,              // [1]
                                                                     const MergeGeometry geometry) {
  double sum = 0;
  for (long long block = threadIdx.x; block < geometry.partials; block += THREADS) sum += partials[block];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *dm = narrow<SCALAR>(static_cast<State>(sum));
}
