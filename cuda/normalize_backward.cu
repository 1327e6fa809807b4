// The gradient of normalize.cu, its mirror image, VECTOR neighbouring pixels to a thread:
//
//     Sigmoid:  dz_k = w_k·(1 − σ(z_k))·(dw_k − Σ_j w_j·dw_j), and 0 for logits below −40
//     Softmax:  dz_k = w_k·(dw_k − Σ_j w_j·dw_j)
//
// over the neighbours inside the image, and 0 for those outside. The weights are computed anew from the logits, unrounded.
// Bytes moved per pixel and group: three logits and three dw in, three dz out. Specialised by METHOD (Sigmoid or Softmax),
// SCALAR (logits and dz), WEIGHT (dw: like the logits, or the state's type after a scan's gradients), STATE, MOST_THREADS, VECTOR.
#include "stable_weights.cuh"

using namespace gspn2;

extern "C" __global__ void __launch_bounds__(MOST_THREADS) normalize_backward(const WEIGHT* dweight,  // [B, G, 3, T, I]
                                                                              const SCALAR* logits,   // [B, G, 3, T, I]
                                                                              SCALAR* dlogits,        // [B, G, 3, T, I]
                                                                              const NormalizeGeometry geometry) {
  const Pixels pixels(geometry);
  if (!pixels.exist) return;
  const auto upstream = pixels.read(dweight, geometry.dweight);
  const auto logit = pixels.read(logits, geometry.logits);
  State result[3][VECTOR];
#pragma unroll
  for (int p = 0; p < VECTOR; ++p) {
    const Neighbours neighbours(pixels, p, logit);
    State gradient[3], mean = 0;
    for (int k = 0; k < 3; ++k) {
      gradient[k] = neighbours.inside[k] ? upstream.tap[k].widened(p) : State(0);
      mean = multiply_add(neighbours.weight[k], gradient[k], mean);
    }
    for (int k = 0; k < 3; ++k) {
      const bool reached = neighbours.inside[k] && !METHOD::beyond(neighbours.logit[k]);
      const State slope = METHOD::slope(neighbours.logit[k]);
      const State value = neighbours.weight[k] * (gradient[k] - mean) * slope;
      result[k][p] = reached ? value : State(0);
    }
  }
  pixels.write(dlogits, geometry.dlogits, result);
}
