// From three logits z to three weights w that sum to 1, over the neighbours inside the image:
//
//     Sigmoid:  w_k = σ(z_k) / Σ_j σ(z_j), where logits below −40 count as −40, so that the sum never vanishes
//     Softmax:  w_k = exp(z_k) / Σ_j exp(z_j)
//
// A NaN among the logits makes all weights of its pixel NaN. A neighbour outside has weight 0, whatever its logit holds.
#pragma once

#include "geometry.cuh"
#include "pack.cuh"
#include "primitives.cuh"

namespace gspn2 {

__device__ __forceinline__ float exponential(float value) {
  return expf(value);
}
__device__ __forceinline__ double exponential(double value) {
  return exp(value);
}

// a / b, where inverse is reciprocal(b). In float by the instructions that the compiler makes of `/`, without its branch for sizes
// that do not occur here: b is between 2^-100 and 2^100, and a is 0, or no less than 2^-100, or b is 1.
__device__ __forceinline__ float quotient(float a, float b, float inverse) {
  const float near = multiply(a, inverse);
  return multiply_add(multiply_add(-b, near, a), inverse, near);
}
__device__ __forceinline__ double quotient(double a, double b, double) {
  return a / b;
}

// The two methods: the numerator of a weight (`largest` is the pixel's largest logit), the weight, the slope of its logarithm over
// the logit, and whether a logit is beyond the limit, so that no gradient reaches it.
struct Sigmoid {
  static constexpr State LOWEST = -40;

  // Not fmax, for which NaN is no number: fmax(NaN, −40) is −40.
  static __device__ __forceinline__ State limited(State z) { return z < LOWEST ? LOWEST : z; }
  static __device__ __forceinline__ State numerator(State z, State) { return reciprocal(1 + exponential(-limited(z))); }
  static __device__ __forceinline__ State weight(State numerator, State sum, State inverse) {
    return quotient(numerator, sum, inverse);
  }
  static __device__ __forceinline__ State slope(State z) {
    const State decay = exponential(-limited(z)), size = 1 + decay;
    return quotient(decay, size, reciprocal(size));  // 1 − σ(z), without cancellation
  }
  static __device__ __forceinline__ bool beyond(State z) { return z < LOWEST; }
};

struct Softmax {
  static constexpr State SCALE = SAME<State, float> ? 0x1p64 : 1;  // of numerators down to 2^-126; smaller may be 0

  static __device__ __forceinline__ State numerator(State z, State largest) { return exponential(z - largest); }
  static __device__ __forceinline__ State weight(State numerator, State sum, State inverse) {
    return quotient(numerator * SCALE, sum, inverse) * (1 / SCALE);
  }
  static __device__ __forceinline__ State slope(State) { return 1; }
  static __device__ __forceinline__ bool beyond(State) { return false; }
};

// What an array [B, G, 3, T, I] holds for a thread's pixels: a vector for each neighbour.
template <typename T>
struct Triples {
  Pack<T, VECTOR> tap[3];
};

// The pixels of a thread, neighbours in memory: of one line, or on successive ones if the scan goes along the rows in memory.
// VECTOR > 1: they have no gaps between them, and every vector is whole and aligned. Blocks are numbered along the rows of an
// image, then from row to row, then from image to image.
struct Pixels {
  bool exist;
  unsigned b, g, t, i;  // of the first; the last two are its line and its place there
  unsigned step;        // to the next on its line, or 0
  unsigned width;

  __device__ __forceinline__ explicit Pixels(const NormalizeGeometry& geometry) {
    const Scan& scan = geometry.scan;
    const unsigned groups = scan.channels, across = geometry.blocks_across, down = geometry.blocks_down;
    const unsigned column = (blockIdx.x % across * blockDim.x + threadIdx.x) * VECTOR;
    const unsigned row = blockIdx.x / across % down * blockDim.y + threadIdx.y;
    const unsigned image = blockIdx.x / across / down * blockDim.z + threadIdx.z;
    b = image / groups;
    g = image % groups;
    t = scan.along ? column : row;
    i = scan.along ? row : column;
    step = scan.along ? 0 : 1;
    width = scan.width;
    exist = b < scan.batch && t < scan.lines && i < width;
  }

  template <typename T>
  __device__ __forceinline__ Triples<T> read(const T* from, const Taps& taps) const {
    from += taps.slice(b, g) + taps.pixel(t, i);
    Triples<T> triples;
#pragma unroll
    for (int k = 0; k < 3; ++k) triples.tap[k] = read_pack<VECTOR>(from + k * taps.tap);
    return triples;
  }
  template <typename T>
  __device__ __forceinline__ void write(T* to, const Taps& taps, const State (&values)[3][VECTOR]) const {
    to += taps.slice(b, g) + taps.pixel(t, i);
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      Pack<T, VECTOR> pack;
#pragma unroll
      for (int p = 0; p < VECTOR; ++p) pack.value[p] = narrow<T>(values[k][p]);
      write_pack(to, pack);
      to += taps.tap;  // step by step: the last of three offsets is written to by single elements
    }
  }
};

// The neighbours of one of the pixels, their logits and weights. What memory holds for those outside shows in no weight.
struct Neighbours {
  bool inside[3];
  State logit[3];
  State weight[3];

  __device__ __forceinline__ Neighbours(const Pixels& pixels, int number, const Triples<SCALAR>& logits)
      : inside{pixels.i + number * pixels.step > 0, true, pixels.i + number * pixels.step + 1 < pixels.width} {
    for (int k = 0; k < 3; ++k) logit[k] = logits.tap[k].widened(number);
    State largest = logit[1];
    if (inside[0] && logit[0] > largest) largest = logit[0];
    if (inside[2] && logit[2] > largest) largest = logit[2];
    State numerator[3], sum = 0;
    for (int k = 0; k < 3; ++k) {
      const State value = METHOD::numerator(logit[k], largest);
      numerator[k] = inside[k] ? value : State(0);
      sum += numerator[k];
    }
    const State inverse = reciprocal(sum);
    for (int k = 0; k < 3; ++k) {
      const State value = METHOD::weight(numerator[k], sum, inverse);
      weight[k] = inside[k] ? value : State(0);
    }
  }
};

}  // namespace gspn2
