// The gradients of a projection's weight and bias, sums over the pixels of all images:
//
//     dweight[o,i] = Σ g[b,o]·x[b,i]          dbias[o] = Σ g[b,o]
//
// First `projection_gradient_partials`: a block of TILE × TILE threads per tile of (o, i) and share of the pixels, a thread
// per entry; the bias is the weight of one more input, which is 1. Then `projection_gradient`, a thread per entry, sums the
// shares' sums in order. STEP pixels at a time pass through shared memory: their sum is carried in the state's type, the sum
// of these in double. The order follows from the shapes alone: not from strides, device or schedule.
// Bytes moved: g once per TILE inputs and x once per TILE outputs, out of the L2 cache where it holds them.
// Specialised by SCALAR (g, x, dweight, dbias), STATE, TILE, STEP, THREADS (TILE·TILE).
#include "geometry.cuh"
#include "primitives.cuh"
#include "state.cuh"

using namespace gspn2;

// Stage STEP pixels of TILE channels of g or x; channel `one` is 1 everywhere. Pixels that are not there are 0 in both.
__device__ __forceinline__ void stage(State* tile,  // [TILE, STEP + 1]
                                      const SCALAR* image, const Image& layout, const Place& place, bool inside,
                                      long long first, long long channels, long long one) {
  const int column = threadIdx.x % STEP;
  for (int row = threadIdx.x / STEP; row < TILE; row += THREADS / STEP) {
    const long long channel = first + row;
    State value = 0;
    if (inside && channel < channels) value = widen(image[place.in(layout) + channel * layout.channel]);
    if (inside && channel == one) value = 1;
    tile[row * (STEP + 1) + column] = value;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    projection_gradient_partials(const SCALAR* g,   // [B, O, H, W]
                                 const SCALAR* x,   // [B, I, H, W]
                                 double* partials,  // [shares, O, I + 1]
                                 const ProjectionGradientGeometry geometry) {
  State* of_g = dynamic_shared<State>();   // [TILE, STEP + 1]
  State* of_x = of_g + TILE * (STEP + 1);  // [TILE, STEP + 1]
  const long long columns = geometry.inputs + 1;
  const unsigned across = static_cast<unsigned>((columns + TILE - 1) / TILE);
  const unsigned down = static_cast<unsigned>((geometry.outputs + TILE - 1) / TILE);
  const long long share = blockIdx.x / across / down;
  const long long first_output = static_cast<long long>(blockIdx.x / across % down) * TILE;
  const long long first_input = static_cast<long long>(blockIdx.x % across) * TILE;
  const long long pixels = geometry.scan.pixels();
  const int row = threadIdx.x / TILE, column = threadIdx.x % TILE;

  double sum = 0;
  for (long long start = share * STEP; start < pixels; start += geometry.shares * STEP) {
    const long long number = start + threadIdx.x % STEP;
    const bool inside = number < pixels;
    const Place place(geometry.scan, inside ? number : 0);
    __syncthreads();
    stage(of_g, g, geometry.g, place, inside, first_output, geometry.outputs, -1);
    stage(of_x, x, geometry.x, place, inside, first_input, geometry.inputs, geometry.inputs);
    __syncthreads();
    State step = 0;
#pragma unroll 8
    for (int k = 0; k < STEP; ++k) {
      step = multiply_add(of_g[row * (STEP + 1) + k], of_x[column * (STEP + 1) + k], step);
    }
    sum += step;
  }
  const long long output = first_output + row, input = first_input + column;
  if (output < geometry.outputs && input < columns)
    partials[(share * geometry.outputs + output) * columns + input] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) projection_gradient(const double* partials,  // [shares, O, I + 1]
                                                                          SCALAR* dweight,         // [O, I], contiguous
                                                                          SCALAR* dbias,           // [O], contiguous
                                                                          const ProjectionGradientGeometry geometry) {
  const long long columns = geometry.inputs + 1, entries = geometry.outputs * columns;
  const long long entry = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
  if (entry >= entries) return;
  double sum = 0;
  for (long long share = 0; share < geometry.shares; ++share) sum += partials[share * entries + entry];
  const long long output = entry / columns, input = entry % columns;
  SCALAR* place = input < geometry.inputs ? dweight + output * geometry.inputs + input : dbias + output;
  *place = narrow<SCALAR>(static_cast<State>(sum));
}
