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
constexpr int SCANNERS = 32 * WARPS * SETS;       // threads that scan …
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

template <typename A, typename B>
constexpr bool SAME = false;
template <typename A>
constexpr bool SAME<A, A> = true;

using Offset = OFFSET;  // int where every array is small enough, long long elsewhere

struct alignas(16) Vector {
  SCALAR value[VECTOR];

  // An element in the state's type; bfloat16 from the word it lies in, by one instruction instead of two.
  __device__ __forceinline__ State widened(int k) const {
    if (!SAME<SCALAR, __nv_bfloat16>) return widen(value[k]);
    unsigned word;
    memcpy(&word, &value[k & ~1], 4);
    return __uint_as_float(k % 2 ? word & 0xffff0000u : word << 16);
  }
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

__device__ __forceinline__ Vector* stage_of(Vector* ring, long long tile) {
  return ring + tile % STAGES * STAGE_VECTORS;
}
__device__ __forceinline__ Vector* out_of(Vector* ring, long long tile) {
  return OVER_X ? stage_of(ring, tile) + 3 * ARRAY_VECTORS : ring + STAGES * STAGE_VECTORS + tile % 2 * OUT_VECTORS;
}

// A copying thread has the same vectors of every tile, so their addresses stay in registers, and a thread that has written h
// out may start the next copy over it.
struct Copier {
  static constexpr int COUNT = (ARRAY_VECTORS + 32 * COPIERS - 1) / (32 * COPIERS);

  Offset x[COUNT], lam[COUNT], weight[COUNT], h[COUNT];  // of the vector in tile 0
  int line[COUNT];  // the vector's first line in the scan; past the end if it is missing
  int place_in_array[COUNT];

  __device__ __forceinline__ Copier(const Addresses& addresses, const Geometry& geometry, int thread) {
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
      const int which = thread + k * 32 * COPIERS;
      const bool is = ARRAY_VECTORS % (32 * COPIERS) == 0 || which < ARRAY_VECTORS;
      const int slot = !is ? 0 : ALONG ? which / SLOT_VECTORS : which % SLOTS;
      const int n = !is ? 0 : ALONG ? which % SLOT_VECTORS : which / SLOTS;
      const int lowest = first_line(n);  // at the lowest address
      const bool exists = is && addresses.x[slot] >= 0;
      line[k] = exists ? lowest - (REVERSED ? VECTOR - 1 : 0) : 1 << 30;
      place_in_array[k] = is ? place(slot, n) : -1;
      x[k] = exists ? addresses.x[slot] + static_cast<Offset>(lowest * geometry.x.line) : 0;
      lam[k] = exists && HAS_LAM ? addresses.lam[slot] + static_cast<Offset>(lowest * geometry.lam.line) : 0;
      weight[k] = exists ? addresses.weight[slot] + static_cast<Offset>(lowest * geometry.weight.line) : 0;
      h[k] = is && addresses.h[slot] >= 0 ? addresses.h[slot] + static_cast<Offset>(lowest * geometry.h.line) : -1;
    }
  }

  // Start the copies of a tile of which `left` lines exist; what does not exist becomes 0.
  __device__ __forceinline__ void load(Vector* stage, const SCALAR* signal, const SCALAR* taps, const SCALAR* scale,
                                       const Geometry& geometry, long long tile, long long left) const {
    const long long lines = tile * LINES;
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
      if (ARRAY_VECTORS % (32 * COPIERS) != 0 && place_in_array[k] < 0) continue;
      const int bytes = line[k] < left ? 16 : 0;
      Vector* const target = stage + place_in_array[k];
      const SCALAR* from = taps + lines * geometry.weight.line + weight[k];
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) {
        copy_async_16(target + tap * ARRAY_VECTORS, from + tap * geometry.weight.tap, bytes);
      }
#pragma unroll
      for (int c = 0; c < BLOCK_CHANNELS; ++c) {
        from = signal + lines * geometry.x.line + c * geometry.x.channel + x[k];
        copy_async_16(target + (3 + c) * ARRAY_VECTORS, from, bytes);
        if (HAS_LAM) {
          from = scale + lines * geometry.lam.line + c * geometry.lam.channel + lam[k];
          copy_async_16(target + (3 + BLOCK_CHANNELS + c) * ARRAY_VECTORS, from, bytes);
        }
      }
    }
  }

  // Write a tile's h to global memory, along the scan.
  __device__ __forceinline__ void store(const Vector* out, SCALAR* result, const Geometry& geometry, long long tile,
                                        long long left) const {
    SCALAR* const to = result + tile * LINES * geometry.h.line;
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
      if (h[k] < 0 || line[k] >= left) continue;
#pragma unroll
      for (int c = 0; c < BLOCK_CHANNELS; ++c) {
        *reinterpret_cast<Vector*>(to + c * geometry.h.channel + h[k]) = out[place_in_array[k] + c * ARRAY_VECTORS];
      }
    }
  }
};

}  // namespace gspn2
