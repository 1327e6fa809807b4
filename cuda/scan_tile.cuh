// A block scans its slice tile by tile: LINES lines of THREADS rows, staged in shared memory.
//
// A slice wider than a block is cut into bands. Each band then brings a halo of LINES rows on both sides: a row at the edge
// of the tile lacks a neighbour, so after n lines the n outermost rows are wrong, and after LINES lines the whole halo is,
// but no row that the band owns. What the halo computes is thrown away, so results do not depend on how the slice is cut.
#pragma once

#include "geometry.cuh"
#include "primitives.cuh"
#include "state.cuh"

namespace gspn2 {

constexpr int PITCH = THREADS + 1;  // odd, so that staging along either axis of a tile is free of bank conflicts

struct Band {
  long long first;  // the row of thread 0; may be negative
  int halo;         // rows on each side that another band owns

  __device__ __forceinline__ long long row() const { return first + threadIdx.x; }
  __device__ __forceinline__ bool inside(long long width) const { return row() >= 0 && row() < width; }
  __device__ __forceinline__ bool owns(int thread, long long width) const {
    return thread >= halo && thread < THREADS - halo && first + thread >= 0 && first + thread < width;
  }
};

__device__ __forceinline__ int halo_of(long long width) {
  return width <= THREADS ? 0 : LINES;
}
__device__ __forceinline__ int owned_rows(long long width) {
  return THREADS - 2 * halo_of(width);
}

// Visit every pixel of a tile once, neighbouring threads on neighbouring addresses: visit(line of the tile, thread's row). A
// thread has the same pixels in every tile, so it may stage over what it has taken out itself.
template <typename Visit>
__device__ __forceinline__ void for_each_pixel(bool along, Visit visit) {
  for (int k = threadIdx.x; k < LINES * THREADS; k += THREADS) {
    if (along) {
      visit(k % LINES, k / LINES);
    } else {
      visit(k / THREADS, k % THREADS);
    }
  }
}

// Shared memory of a block: a tile of the signal, which the scan overwrites by its result, the tile's weights, and two
// lines that rows exchange with their neighbours, each with a cell beyond either end that stays 0. The block must meet before
// it uses these lines.
struct Stage {
  State* signal;     // [LINES][PITCH]
  State* weight[3];  // [LINES][PITCH] each
  State* exchange;   // [4][THREADS + 2]

  __device__ __forceinline__ Stage() {
    State* shared = dynamic_shared<State>();
    signal = shared;
    for (int k = 0; k < 3; ++k) weight[k] = shared + (k + 1) * LINES * PITCH;
    exchange = shared + 4 * LINES * PITCH;
    for (int k = threadIdx.x; k < 4 * (THREADS + 2); k += THREADS) exchange[k] = State(0);
  }
  __device__ __forceinline__ State* line(int which) const { return exchange + which * (THREADS + 2) + 1; }
};

// Stage the three weights of a tile. A weight whose neighbour is outside the image becomes 0 whatever it holds, NaN
// included; so does one on a line for which `used` is false.
template <typename Used>
__device__ __forceinline__ void stage_weights(const Stage& stage, const WEIGHT* weight, const Taps& taps,
                                              const Scan& scan, const Band& band, long long t0, Used used) {
  for_each_pixel(scan.along != 0, [&](int n, int r) {
    const long long t = t0 + n, i = band.first + r;
    const bool inside = t < scan.lines && i >= 0 && i < scan.width && used(t);
    const WEIGHT* pixel = weight + taps.pixel(t, i);
    stage.weight[0][n * PITCH + r] = inside && i > 0 ? widen(pixel[0]) : State(0);
    stage.weight[1][n * PITCH + r] = inside ? widen(pixel[taps.tap]) : State(0);
    stage.weight[2][n * PITCH + r] = inside && i + 1 < scan.width ? widen(pixel[2 * taps.tap]) : State(0);
  });
}

}  // namespace gspn2
