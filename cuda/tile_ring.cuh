// Tiles of a slice in shared memory: how rows, lines and arrays lie in a ring of STAGES tiles, and the warps that copy them in
// and out. See line_scan_tiles.cu for the scan itself.
//
// A tile holds LINES lines of BLOCK_ROWS rows of the three weights and of x and λ of BLOCK_CHANNELS channels, in 16-byte
// vectors of VECTOR elements. A *slot* is what one address in global memory leads to:
//   ALONG = 1: a row, whose lines are contiguous: SLOT_VECTORS vectors of VECTOR lines each.
//   ALONG = 0: VECTOR rows, which are contiguous in each line: SLOT_VECTORS = LINES vectors.
#pragma once

#include "geometry.cuh"
#include "primitives.cuh"
#include "state.cuh"

namespace gspn2 {

constexpr int VECTOR = 16 / sizeof(SCALAR);
constexpr int WARP_ROWS = 32 * ROWS;                             // rows of a scanning warp, halo included
constexpr int WARP_STEP = WARP_ROWS - 2 * HALO;                  // rows it owns
constexpr int BLOCK_ROWS = (WARPS - 1) * WARP_STEP + WARP_ROWS;  // rows of a block, outer halo included
constexpr int BLOCK_CHANNELS = SETS * CHANNELS;
constexpr int SCANNERS = 32 * WARPS * SETS;  // threads that scan …
constexpr int THREADS = SCANNERS + 32 * COPIERS;  // … and that copy

constexpr int ARRAYS = 3 + BLOCK_CHANNELS * (1 + HAS_LAM);  // weights, then x, then λ
constexpr int SLOTS = ALONG ? BLOCK_ROWS : BLOCK_ROWS / VECTOR;
constexpr int SLOT_VECTORS = ALONG ? LINES / VECTOR : LINES;
constexpr int ARRAY_VECTORS = SLOTS * SLOT_VECTORS;
constexpr int STAGE_VECTORS = ARRAYS * ARRAY_VECTORS;

// Along the scan h leaves through shared memory: over x, unless another warp still reads that x for its halo.
constexpr bool OVER_X = WARPS == 1;
constexpr int OUT_VECTORS = ALONG && !OVER_X ? BLOCK_CHANNELS * ARRAY_VECTORS : 0;  // twice: one is filled, one leaves
constexpr int RING_VECTORS = STAGES * STAGE_VECTORS + 2 * OUT_VECTORS;

static_assert(HALO == 0 ? WARPS == 1 : HALO % ROWS == 0 && HALO % VECTOR == 0 && HALO % LINES == 0, "halo");
static_assert(ALONG ? LINES % VECTOR == 0 && GROUP == VECTOR : ROWS % VECTOR == 0 && !REVERSED, "vectors");
static_assert(LINES % GROUP == 0 && STAGES >= 2 && sizeof(State) == 4, "stages");

using Offset = OFFSET;  // int where every array is small enough, long long elsewhere

struct alignas(16) Vector {
  SCALAR value[VECTOR];
};

// Rows are dealt out so that the lanes of a warp, which hold ROWS neighbouring rows each, find their rows side by side.
__device__ __forceinline__ int slot_of_row(int row) {
  return ALONG ? row % ROWS * (BLOCK_ROWS / ROWS) + row / ROWS : row / VECTOR;
}
__device__ __forceinline__ int row_of_slot(int slot) {
  return ALONG ? slot % (BLOCK_ROWS / ROWS) * ROWS + slot / (BLOCK_ROWS / ROWS) : slot * VECTOR;
}

// Where vector n of a slot lies within an array. Along the scan the vectors of a slot change places from slot to slot, so that
// eight lanes that read one vector each, of eight slots, touch all banks.
__device__ __forceinline__ int place(int slot, int n) {
  if (!ALONG) return n * SLOTS + slot;
  constexpr int PERIOD = SLOT_VECTORS >= 8 ? 1 : 8 / SLOT_VECTORS;
  return slot * SLOT_VECTORS + (n ^ (slot / PERIOD % SLOT_VECTORS));
}

// The line, counted from the tile's first, at the lowest address of vector n of a slot. Reversed scans keep the order of
// addresses, so there a tile's first vector holds its last lines.
__device__ __forceinline__ int first_line(int n) {
  return REVERSED ? (SLOT_VECTORS - n) * VECTOR - 1 : ALONG ? n * VECTOR : n;
}

// Where a slot's line 0 lies in each array; -1 where there is nothing to read or to write.
struct Addresses {
  Offset x[SLOTS], lam[SLOTS], weight[SLOTS], h[SLOTS];
};

// What the copying warps need.
struct Copier {
  const SCALAR *x, *weight, *lam;
  SCALAR* h;
  const Geometry& geometry;
  const Addresses& addresses;
  Vector* ring;
  int thread;  // among the copying threads

  __device__ __forceinline__ Vector* stage(long long tile) const { return ring + tile % STAGES * STAGE_VECTORS; }
  __device__ __forceinline__ Vector* out(long long tile) const {
    return OVER_X ? stage(tile) + 3 * ARRAY_VECTORS : ring + STAGES * STAGE_VECTORS + tile % 2 * OUT_VECTORS;
  }

  // Visit this thread's vectors of a tile: visit(slot, n, line at the vector's lowest address, whether it exists). The same thread has the same
  // vectors of every tile, so one that writes h out over x may start the next copy into that place.
  template <typename Visit>
  __device__ __forceinline__ void for_each_vector(long long tile, Visit visit) const {
#pragma unroll 2
    for (int k = thread; k < ARRAY_VECTORS; k += 32 * COPIERS) {
      const int slot = ALONG ? k / SLOT_VECTORS : k % SLOTS, n = ALONG ? k % SLOT_VECTORS : k / SLOTS;
      const long long t = tile * LINES + first_line(n);
      visit(slot, n, t, t - (REVERSED ? VECTOR - 1 : 0) < geometry.scan.lines);
    }
  }

  // Start the copies of a tile; what does not exist becomes 0.
  __device__ __forceinline__ void load(long long tile) const {
    for_each_vector(tile, [&](int slot, int n, long long t, bool exists) {
      exists = exists && addresses.x[slot] >= 0;
      const int bytes = exists ? 16 : 0;
      Vector* const target = stage(tile) + place(slot, n);
      const Offset step = static_cast<Offset>(t * geometry.x.line);
      const SCALAR* const taps = weight + (exists ? addresses.weight[slot] + step : 0);
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) {
        copy_async_16(target + tap * ARRAY_VECTORS, taps + tap * geometry.weight.tap, bytes);
      }
      const SCALAR* const signal = x + (exists ? addresses.x[slot] + step : 0);
      const SCALAR* const scale = HAS_LAM ? lam + (exists ? addresses.lam[slot] + step : 0) : nullptr;
#pragma unroll
      for (int c = 0; c < BLOCK_CHANNELS; ++c) {
        copy_async_16(target + (3 + c) * ARRAY_VECTORS, signal + c * geometry.x.channel, bytes);
        if (HAS_LAM) {
          copy_async_16(target + (3 + BLOCK_CHANNELS + c) * ARRAY_VECTORS, scale + c * geometry.lam.channel, bytes);
        }
      }
    });
  }

  // Write a tile's h to global memory, along the scan.
  __device__ __forceinline__ void store(long long tile) const {
    const Vector* const from = out(tile);
    for_each_vector(tile, [&](int slot, int n, long long t, bool exists) {
      if (!exists || addresses.h[slot] < 0) return;
      SCALAR* const to = h + (addresses.h[slot] + static_cast<Offset>(t * geometry.h.line));
#pragma unroll
      for (int c = 0; c < BLOCK_CHANNELS; ++c) {
        *reinterpret_cast<Vector*>(to + c * geometry.h.channel) = from[place(slot, n) + c * ARRAY_VECTORS];
      }
    });
  }
};

}  // namespace gspn2
