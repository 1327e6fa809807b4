// Weights from unconstrained logits, w = Sigmoid or Softmax of stable_weights.cuh, a thread per pixel of a group.
//
// Bytes moved per pixel and group: three logits in, three weights out. Specialised by METHOD (Sigmoid or Softmax), SCALAR
// (logits), WEIGHT (w: like the logits, or the state's type for a scan that follows), STATE, THREADS.
#include "stable_weights.cuh"

using namespace gspn2;

extern "C" __global__ void __launch_bounds__(THREADS) normalize(const SCALAR* logits,  // [B, G, 3, T, I]
                                                                WEIGHT* weight,        // [B, G, 3, T, I]
                                                                const NormalizeGeometry geometry) {
  const long long number = static_cast<long long>(blockIdx.x) * THREADS + threadIdx.x;
  if (number >= geometry.scan.pixels()) return;
  const Place place(geometry.scan, number);
  const Neighbours neighbours(logits, geometry.logits, geometry.scan, place);
  weight += place.in(geometry.weight);
  for (int k = 0; k < 3; ++k) weight[k * geometry.weight.tap] = narrow<WEIGHT>(neighbours.weight[k]);
}
