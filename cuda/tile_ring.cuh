// Tiles of a slice in shared memory: how rows, lines and arrays lie in a ring of STAGES tiles, and the warps that copy them in
// and out. See line_scan_tiles.cu for the scan itself.
//
// A tile holds LINES lines of BLOCK_ROWS rows of the three weights and of x and λ of BLOCK_CHANNELS channels, in vectors of 16
// bytes. A *slot* is what one address in global memory leads to:
//   ALONG = 1: a row, whose lines are contiguous.
//   ALONG = 0: as many rows as a vector holds, which are contiguous in each line.
#pragma once

#include "geometry.cuh"
#include "primitives.cuh"
#include "scan_lane.cuh"

namespace gspn2 {

constexpr int WARP_ROWS = 32 * ROWS;                             // rows of a scanning warp, halos included
constexpr int WARP_STEP = WARP_ROWS - 2 * INNER;                 // from warp to warp
constexpr int BLOCK_ROWS = (WARPS - 1) * WARP_STEP + WARP_ROWS;  // rows of a block, outer halos included
constexpr int BLOCK_CHANNELS = SETS;
constexpr int SCANNERS = 32 * WARPS * SETS;  // threads that scan …
constexpr int COPYING = 32 * COPIERS;        // … and that copy
constexpr int THREADS = SCANNERS + COPYING;
constexpr bool PACKED = WARPS == 1 && OUTER == 0;  // a block holds several whole slices, side by side

using Offset = OFFSET;  // int where every array is small enough, long long elsewhere
using Vector = Pack<unsigned, 4>;

// How an array of T lies in a tile.
template <typename T>
struct Layout {
  static constexpr int VECTOR = 16 / sizeof(T);
  static constexpr int SLOTS = ALONG ? BLOCK_ROWS : BLOCK_ROWS / VECTOR;
  static constexpr int SLOT_VECTORS = ALONG ? LINES / VECTOR : LINES;
  static constexpr int VECTORS = SLOTS * SLOT_VECTORS;
  static constexpr int COUNT = (VECTORS + COPYING - 1) / COPYING;  // those of a copying thread
  static_assert(ALONG ? LINES % VECTOR == 0 : BLOCK_ROWS % VECTOR == 0, "whole vectors");

  // Rows are dealt out so that the lanes of a warp, which hold ROWS neighbouring rows each, find their rows side by side.
  static __device__ __forceinline__ int slot_of_row(int row) {
    return ALONG ? row % ROWS * (BLOCK_ROWS / ROWS) + row / ROWS : row / VECTOR;
  }
  static __device__ __forceinline__ int row_of_slot(int slot) {
    return ALONG ? slot % (BLOCK_ROWS / ROWS) * ROWS + slot / (BLOCK_ROWS / ROWS) : slot * VECTOR;
  }
  // Where vector n of a slot lies within the array. Along the scan the vectors of a slot change places from slot to slot, so
  // that eight lanes that read one vector each, of eight slots, touch all banks.
  static __device__ __forceinline__ int place(int slot, int n) {
    if (!ALONG) return n * SLOTS + slot;
    constexpr int PERIOD = SLOT_VECTORS >= 8 ? 1 : 8 / SLOT_VECTORS;
    return slot * SLOT_VECTORS + (n ^ (slot / PERIOD % SLOT_VECTORS));
  }
  // A vector's first line in the scan, and its line at the lowest address, counted from the tile's first line. Reversed scans
  // keep the order of addresses, so there a tile's first vector holds its last lines.
  static __device__ __forceinline__ int first_line(int n) {
    return REVERSED ? LINES - (n + 1) * VECTOR : ALONG ? n * VECTOR : n;
  }
  static __device__ __forceinline__ int lowest_line(int n) { return first_line(n) + (REVERSED ? VECTOR - 1 : 0); }
};

constexpr int TAPS_VECTORS = Layout<WEIGHT>::VECTORS, IMAGE_VECTORS = Layout<SCALAR>::VECTORS;
constexpr int STAGE_VECTORS = 3 * TAPS_VECTORS + BLOCK_CHANNELS * (1 + HAS_LAM) * IMAGE_VECTORS;

// Along the scan h leaves through shared memory: over x, but beside the ring where x is of another size, and at the rows that
// two warps of the block have, one of which may still read x. What lies beside is there twice: one is filled, one leaves.
constexpr bool OVER_X = sizeof(RESULT) == sizeof(SCALAR);
constexpr int SHARED_ROWS = (WARPS - 1) * 2 * INNER;
constexpr int BESIDE_ROWS = !ALONG ? 0 : OVER_X ? SHARED_ROWS : BLOCK_ROWS;
constexpr int BESIDE_VECTORS = BESIDE_ROWS * (ALONG ? LINES * static_cast<int>(sizeof(RESULT)) / 16 : 0);  // of a channel
constexpr int RING_VECTORS = STAGES * STAGE_VECTORS + 2 * BLOCK_CHANNELS * BESIDE_VECTORS;

__device__ __forceinline__ Vector* stage_of(Vector* ring, int tile) {
  return ring + tile % STAGES * STAGE_VECTORS;
}
__device__ __forceinline__ bool beside(int row) {
  return ALONG && (!OVER_X || (row >= WARP_STEP && row < WARPS * WARP_STEP && row % WARP_STEP < 2 * INNER));
}
// Where vector n of a row's h lies in the ring, for the block's first channel, and how far the next channel's is.
__device__ __forceinline__ Vector* out_of(Vector* ring, int tile, int row, int n) {
  using H = Layout<RESULT>;
  if (!beside(row)) return stage_of(ring, tile) + 3 * TAPS_VECTORS + H::place(H::slot_of_row(row), n);
  constexpr int ROW_VECTORS = H::SLOT_VECTORS;
  const int which = OVER_X ? (row / WARP_STEP - 1) * 2 * INNER + row % WARP_STEP : H::slot_of_row(row);
  constexpr int PERIOD = ROW_VECTORS >= 8 ? 1 : 8 / ROW_VECTORS;
  return ring + STAGES * STAGE_VECTORS + tile % 2 * BLOCK_CHANNELS * BESIDE_VECTORS + which * ROW_VECTORS +
         (n ^ (which / PERIOD % ROW_VECTORS));
}
__device__ __forceinline__ int out_step(int row) {
  return beside(row) ? BESIDE_VECTORS : IMAGE_VECTORS;
}

// Which rows a block has of a unit: BLOCK_CHANNELS slices that share their weights.
struct Rows {
  int unit, units, units_of_block, channels, per_group;  // `unit`: the block's first, of `units`
  int width, first, band_rows;                           // `first`: the row of the slice that the block's first is

  // There are fewer than 2^30 units: 32-bit divisions, on which a block spends its first microsecond.
  __device__ __forceinline__ int unit_of(int row) const { return PACKED ? unit + row / width : unit; }
  __device__ __forceinline__ int row_of(int row) const { return PACKED ? row % width : first + row; }
  __device__ __forceinline__ bool exists(int row) const {
    if (PACKED) return row < units_of_block * width && unit_of(row) < units;
    return row_of(row) >= 0 && row_of(row) < width && row < band_rows + 2 * OUTER;
  }
  __device__ __forceinline__ bool owns(int row) const {
    return exists(row) && (PACKED || (row >= OUTER && row < OUTER + band_rows));
  }
  __device__ __forceinline__ int channel(int row) const { return unit_of(row) * BLOCK_CHANNELS; }

  template <typename Array>
  __device__ __forceinline__ Offset address(const Array& array, int row, bool grouped) const {
    const int channel_of_all = channel(row), b = channel_of_all / channels, c = channel_of_all % channels;
    return static_cast<Offset>(array.slice(b, grouped ? c / per_group : c) + row_of(row) * array.cross);
  }
};

// The vectors of an array of T that a copying thread has of every tile. Their addresses stay in registers, and a thread that has
// written h out may start the next copy over it.
template <typename T>
struct Strip {
  using Lay = Layout<T>;
  int slot[Lay::COUNT], n[Lay::COUNT];

  __device__ __forceinline__ explicit Strip(int thread) {
#pragma unroll
    for (int k = 0; k < Lay::COUNT; ++k) {
      const int which = thread + k * COPYING;
      slot[k] = ALONG ? which / Lay::SLOT_VECTORS : which % Lay::SLOTS;
      n[k] = ALONG ? which % Lay::SLOT_VECTORS : which / Lay::SLOTS;
      if (Lay::VECTORS % COPYING != 0 && which >= Lay::VECTORS) n[k] = -1;
    }
  }
  __device__ __forceinline__ bool has(int k) const { return Lay::VECTORS % COPYING == 0 || n[k] >= 0; }
};

struct Copier {
  using Taps = Layout<WEIGHT>;
  using Images = Layout<SCALAR>;
  using Results = Layout<RESULT>;

  Offset taps[Taps::COUNT], x[Images::COUNT], lam[Images::COUNT];  // of the vectors in tile 0; past the end: first line
  int taps_line[Taps::COUNT], x_line[Images::COUNT];               // the first line in the scan; 2^30 if there is none
  Offset h[ALONG ? Results::COUNT : 1];                            // -1: not this block's

  // Take up the unit that is to be loaded.
  __device__ __forceinline__ void aim(const Rows& rows, const Geometry& geometry, int thread) {
    const Strip<WEIGHT> of_taps(thread);
#pragma unroll
    for (int k = 0; k < Taps::COUNT; ++k) {
      const int row = Taps::row_of_slot(of_taps.slot[k]);
      const bool exists = of_taps.has(k) && rows.exists(row);
      taps_line[k] = exists ? Taps::first_line(of_taps.n[k]) : 1 << 30;
      taps[k] = exists ? rows.address(geometry.weight, row, true) +
                             static_cast<Offset>(Taps::lowest_line(of_taps.n[k]) * geometry.weight.line)
                       : 0;
    }
    const Strip<SCALAR> of_images(thread);
#pragma unroll
    for (int k = 0; k < Images::COUNT; ++k) {
      const int row = Images::row_of_slot(of_images.slot[k]), line = Images::lowest_line(of_images.n[k]);
      const bool exists = of_images.has(k) && rows.exists(row);
      x_line[k] = exists ? Images::first_line(of_images.n[k]) : 1 << 30;
      x[k] = exists ? rows.address(geometry.x, row, false) + static_cast<Offset>(line * geometry.x.line) : 0;
      if (HAS_LAM) {
        lam[k] = exists ? rows.address(geometry.lam, row, false) + static_cast<Offset>(line * geometry.lam.line) : 0;
      }
    }
  }
  // Take up the unit whose h is to be stored.
  __device__ __forceinline__ void aim_back(const Rows& rows, const Geometry& geometry, int thread) {
    const Strip<RESULT> of_results(thread);
#pragma unroll
    for (int k = 0; k < Results::COUNT; ++k) {
      const int row = Results::row_of_slot(of_results.slot[k]);
      const bool owned = of_results.has(k) && rows.owns(row);
      h[k] = owned ? rows.address(geometry.h, row, false) +
                         static_cast<Offset>(Results::lowest_line(of_results.n[k]) * geometry.h.line)
                   : Offset(-1);
    }
  }

  // Start the copies of a tile of which `left` lines exist; what does not exist becomes 0.
  __device__ __forceinline__ void load(Vector* stage, const SCALAR* signal, const WEIGHT* weight, const SCALAR* scale,
                                       const Geometry& geometry, long long tile, long long left, int thread) const {
    const Strip<WEIGHT> of_taps(thread);
    const WEIGHT* const first_tap = weight + tile * LINES * geometry.weight.line;
#pragma unroll
    for (int k = 0; k < Taps::COUNT; ++k) {
      if (!of_taps.has(k)) continue;
      Vector* const target = stage + Taps::place(of_taps.slot[k], of_taps.n[k]);
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) {
        copy_async_16(target + tap * TAPS_VECTORS, first_tap + taps[k] + tap * geometry.weight.tap,
                      taps_line[k] < left ? 16 : 0);
      }
    }
    const Strip<SCALAR> of_images(thread);
    const SCALAR* const first_x = signal + tile * LINES * geometry.x.line;
    const SCALAR* const first_lam = scale + tile * LINES * geometry.lam.line;
#pragma unroll
    for (int k = 0; k < Images::COUNT; ++k) {
      if (!of_images.has(k)) continue;
      Vector* const target = stage + 3 * TAPS_VECTORS + Images::place(of_images.slot[k], of_images.n[k]);
      const int bytes = x_line[k] < left ? 16 : 0;
#pragma unroll
      for (int c = 0; c < BLOCK_CHANNELS; ++c) {
        copy_async_16(target + c * IMAGE_VECTORS, first_x + x[k] + c * geometry.x.channel, bytes);
        if (HAS_LAM) {
          copy_async_16(target + (BLOCK_CHANNELS + c) * IMAGE_VECTORS, first_lam + lam[k] + c * geometry.lam.channel,
                        bytes);
        }
      }
    }
  }

  // Write a tile's h to global memory, along the scan. `count`: the block's tiles before it, which tells where it lies.
  __device__ __forceinline__ void store(Vector* ring, int count, RESULT* result, const Geometry& geometry,
                                        long long tile, long long left, int thread) const {
    const Strip<RESULT> of_results(thread);
    RESULT* const to = result + tile * LINES * geometry.h.line;
    Vector leaving[Results::COUNT][BLOCK_CHANNELS];
#pragma unroll
    for (int k = 0; k < Results::COUNT; ++k) {
      if (!of_results.has(k)) continue;
      const int row = Results::row_of_slot(of_results.slot[k]);
      const Vector* const from = out_of(ring, count, row, of_results.n[k]);
#pragma unroll
      for (int c = 0; c < BLOCK_CHANNELS; ++c) {
        if (h[k] >= 0 && Results::first_line(of_results.n[k]) < left) leaving[k][c] = from[c * out_step(row)];
      }
    }
#pragma unroll
    for (int k = 0; k < Results::COUNT; ++k) {
      if (!of_results.has(k)) continue;
#pragma unroll
      for (int c = 0; c < BLOCK_CHANNELS; ++c) {
        if (h[k] >= 0 && Results::first_line(of_results.n[k]) < left) {
          *reinterpret_cast<Vector*>(to + c * geometry.h.channel + h[k]) = leaving[k][c];
        }
      }
    }
  }
};

}  // namespace gspn2
