// A 1×1 convolution, the projections of the compact unit, a thread per pixel and OUTPUTS of its output channels:
//
//     sum[b,o] = before[b,o] + bias[o] + Σ_i weight[o,i]·x[b,i]          at each pixel, inputs i in order
//
// With the strides of `weight` exchanged it is the transposed map, which hands gradients back; those of several projections
// of one image are added up through `before`, which may be the same array as `sum`.
// The weights of the block's outputs pass through shared memory, INPUTS inputs at a time. Blocks that read the same pixels
// for other outputs follow each other, so that all but the first find them in the L2 cache.
// Bytes moved per pixel: x's inputs in, sum's outputs out, before's in where it is there.
// Specialised by SCALAR (weight, bias), INPUT (x), BEFORE, SUM, STATE, OUTPUTS, INPUTS, THREADS.
#include "geometry.cuh"
#include "primitives.cuh"
#include "state.cuh"

using namespace gspn2;

extern "C" __global__ void __launch_bounds__(THREADS) projection(const INPUT* x,        // [B, I, H, W]
                                                                 const SCALAR* weight,  // [O, I]
                                                                 const SCALAR* bias,    // [O] or null: 0
                                                                 const BEFORE* before,  // [B, O, H, W] or null: 0
                                                                 SUM* sum,              // [B, O, H, W]
                                                                 const ProjectionGeometry geometry) {
  State* tile = dynamic_shared<State>();  // [INPUTS, OUTPUTS]
  const long long inputs = geometry.inputs, outputs = geometry.outputs;
  const unsigned tiles = static_cast<unsigned>((outputs + OUTPUTS - 1) / OUTPUTS);
  const long long first = static_cast<long long>(blockIdx.x % tiles) * OUTPUTS;  // of the block's outputs
  const long long number = static_cast<long long>(blockIdx.x / tiles) * THREADS + threadIdx.x;
  const bool inside = number < geometry.scan.pixels();
  const Place place(geometry.scan, inside ? number : 0);

  State value[OUTPUTS];
#pragma unroll
  for (int k = 0; k < OUTPUTS; ++k) value[k] = 0;
  const INPUT* pixel = x + place.in(geometry.x);
  for (long long start = 0; start < inputs; start += INPUTS) {
    const int count = inputs - start < INPUTS ? static_cast<int>(inputs - start) : INPUTS;
    __syncthreads();
    for (int entry = threadIdx.x; entry < INPUTS * OUTPUTS; entry += THREADS) {
      const long long input = start + entry / OUTPUTS, output = first + entry % OUTPUTS;
      const bool there = input < inputs && output < outputs;
      tile[entry] = there ? widen(weight[geometry.weight.at(output, input)]) : State(0);
    }
    __syncthreads();
    if (!inside) continue;
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const State in = widen(pixel[(start + i) * geometry.x.channel]);
#pragma unroll
      for (int k = 0; k < OUTPUTS; ++k) value[k] = multiply_add(tile[i * OUTPUTS + k], in, value[k]);
    }
  }
  if (!inside) return;
#pragma unroll
  for (int k = 0; k < OUTPUTS; ++k) {
    const long long output = first + k;
    if (output >= outputs) break;
    State total = value[k];
    if (bias) total += widen(bias[output * geometry.bias]);
    if (before) total += widen(before[place.in(geometry.before) + output * geometry.before.channel]);
    sum[place.in(geometry.sum) + output * geometry.sum.channel] = narrow<SUM>(total);
  }
}
