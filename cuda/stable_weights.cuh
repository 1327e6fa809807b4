// From three logits z to three weights w that sum to 1, over the neighbours inside the image:
//
//     Sigmoid:  w_k = σ(z_k) / Σ_j σ(z_j), where logits below −40 count as −40, so that the sum never vanishes
//     Softmax:  w_k = exp(z_k) / Σ_j exp(z_j)
//
// A NaN among the logits makes all weights of its pixel NaN. A neighbour outside has weight 0, whatever its logit holds.
#pragma once

#include "geometry.cuh"
#include "state.cuh"

namespace gspn2 {

__device__ __forceinline__ float exponential(float value) {
  return expf(value);
}
__device__ __forceinline__ double exponential(double value) {
  return exp(value);
}

// The two methods: the numerator of a weight (`largest` is the pixel's largest logit), the slope of its logarithm over the
// logit, and whether a logit is beyond the limit, so that no gradient reaches it.
struct Sigmoid {
  static constexpr State LOWEST = -40;

  // Not fmax, for which NaN is no number: fmax(NaN, −40) is −40.
  static __device__ __forceinline__ State limited(State z) { return z < LOWEST ? LOWEST : z; }
  static __device__ __forceinline__ State numerator(State z, State) { return 1 / (1 + exponential(-limited(z))); }
  static __device__ __forceinline__ State slope(State z) {
    const State decay = exponential(-limited(z));
    return decay / (1 + decay);  // 1 − σ(z), without cancellation
  }
  static __device__ __forceinline__ bool beyond(State z) { return z < LOWEST; }
};

struct Softmax {
  static __device__ __forceinline__ State numerator(State z, State largest) { return exponential(z - largest); }
  static __device__ __forceinline__ State slope(State) { return 1; }
  static __device__ __forceinline__ bool beyond(State) { return false; }
};

// The neighbours of a pixel, their logits and weights.
struct Neighbours {
  bool inside[3];
  State logit[3];
  State weight[3];

  __device__ __forceinline__ Neighbours(const SCALAR* logits, const Taps& taps, const Scan& scan, const Place& place)
      : inside{place.i > 0, true, place.i + 1 < scan.width} {
    logits += place.in(taps);
    for (int k = 0; k < 3; ++k) logit[k] = inside[k] ? widen(logits[k * taps.tap]) : State(0);
    State largest = logit[1];
    if (inside[0] && logit[0] > largest) largest = logit[0];
    if (inside[2] && logit[2] > largest) largest = logit[2];
    State sum = 0;
    for (int k = 0; k < 3; ++k) {
      weight[k] = inside[k] ? METHOD::numerator(logit[k], largest) : State(0);
      sum += weight[k];
    }
    for (int k = 0; k < 3; ++k) weight[k] = inside[k] ? weight[k] / sum : State(0);
  }
};

}  // namespace gspn2
