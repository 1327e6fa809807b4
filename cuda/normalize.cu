// Weights from unconstrained logits, w = Sigmoid or Softmax of stable_weights.cuh, VECTOR neighbouring pixels to a thread.
//
// Bytes moved per pixel and group: three logits in, three weights out. Specialised by METHOD (Sigmoid or Softmax), SCALAR
// (logits), WEIGHT (w: like the logits, or the state's type for a scan that follows), STATE, MOST_THREADS, VECTOR.
#include "stable_weights.cuh"

using namespace gspn2;

extern "C" __global__ void __launch_bounds__(MOST_THREADS) normalize(const SCALAR* logits,  // [B, G, 3, T, I]
                                                                     WEIGHT* weight,        // [B, G, 3, T, I]
                                                                     const NormalizeGeometry geometry) {
  const Pixels pixels(geometry);
  if (!pixels.exist) return;
  const auto logit = pixels.read(logits, geometry.logits);
  State result[3][VECTOR];
#pragma unroll
  for (int p = 0; p < VECTOR; ++p) {
    const Neighbours neighbours(pixels, p, logit);
    for (int k = 0; k < 3; ++k) result[k][p] = neighbours.weight[k];
  }
  pixels.write(weight, geometry.weight, result);
}
