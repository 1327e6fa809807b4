// Tiles of a slice in shared memory: how rows, lines and arrays lie in a ring of STAGES tiles, and the warps that copy them in
// and out. See line_scan_tiles.cu for the scan itself.
//
// A tile holds LINES lines of BLOCK_ROWS rows of the three weights and of x and λ of BLOCK_CHANNELS channels, in vectors of 16
// bytes. A *slot* is what one address in global memory leads to:
//   ALONG = 1: a row, whose lines are contiguous.
//   ALONG = 0: as many rows as a vector holds, which are contiguous in each line.
// Memory need not be aligned to vectors: all copies are of PIECE bytes, or of one element if that is larger. A piece exists as a
// whole or not at all.
#pragma once

#include "geometry.cuh"
#include "merge_term.cuh"
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
using Hidden = Choice<MERGING, State, RESULT>::Type;  // what h is until it is merged: unrounded
template <typename T>
__device__ constexpr int piece_of() {
  return PIECE < sizeof(T) ? sizeof(T) : PIECE;
}

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
    static_assert(!ALONG || (SLOT_VECTORS & (SLOT_VECTORS - 1)) == 0, "what a vector's number is mixed with");
    return (slot * SLOT_VECTORS + slot / PERIOD % SLOT_VECTORS) ^ n;  // the first part is worked out once for a row
  }
  // A vector's first line in the scan, and its line at the lowest address, counted from the tile's first line. Reversed scans
  // keep the order of addresses, so there a tile's first vector holds its last lines.
  static __device__ __forceinline__ int first_line(int n) {
    return REVERSED ? LINES - (n + 1) * VECTOR : ALONG ? n * VECTOR : n;
  }
  static __device__ __forceinline__ int lowest_line(int n) { return first_line(n) + (REVERSED ? VECTOR - 1 : 0); }
};

constexpr int TAPS_VECTORS = Layout<WEIGHT>::VECTORS, IMAGE_VECTORS = Layout<SCALAR>::VECTORS;
// Across the scan, what h will be merged with comes through the ring, too: the sum so far, then u.
constexpr bool ADDENDS_STAGED = MERGING && !ALONG;
constexpr int ADDENDS_AT = 3 * TAPS_VECTORS + BLOCK_CHANNELS * (1 + HAS_LAM) * IMAGE_VECTORS;
using Before = Choice<ADDENDS_STAGED, State, SCALAR>::Type;
constexpr int BEFORE_VECTORS = ADDENDS_STAGED ? Layout<Before>::VECTORS : 0;
constexpr int STAGE_VECTORS =
    ADDENDS_AT + BLOCK_CHANNELS * (BEFORE_VECTORS + (ADDENDS_STAGED && HAS_U) * IMAGE_VECTORS);

// Along the scan h leaves through shared memory: over x, or over x and λ where it is twice as large; but beside the ring where
// there is no λ then, and at the rows that two warps of the block have, one of which may still read x. What lies beside is there
// twice: one is filled, one leaves.
constexpr bool OVER_BOTH = HAS_LAM && sizeof(Hidden) == 2 * sizeof(SCALAR);
constexpr bool OVER_X = sizeof(Hidden) == sizeof(SCALAR) || OVER_BOTH;
constexpr int SHARED_ROWS = (WARPS - 1) * 2 * INNER;
constexpr int BESIDE_ROWS = !ALONG ? 0 : OVER_X ? SHARED_ROWS : BLOCK_ROWS;
constexpr int BESIDE_VECTORS =
    BESIDE_ROWS * (ALONG ? LINES * static_cast<int>(sizeof(Hidden)) / 16 : 0);  // of a channel
constexpr int RING_VECTORS = STAGES * STAGE_VECTORS + 2 * BLOCK_CHANNELS * BESIDE_VECTORS;

// Where vector n of a slot of h lies, counted from x: every second one over λ, if it lies over both, so that it covers lines that
// its lane has read.
__device__ __forceinline__ int place_over(int slot, int n) {
  if (!OVER_BOTH) return Layout<Hidden>::place(slot, n);
  return n % 2 * BLOCK_CHANNELS * IMAGE_VECTORS + Layout<SCALAR>::place(slot, n / 2);
}
__device__ __forceinline__ Vector* stage_of(Vector* ring, int tile) {
  return ring + tile % STAGES * STAGE_VECTORS;
}
__device__ __forceinline__ bool beside(int row) {
  return ALONG && (!OVER_X || (row >= WARP_STEP && row < WARPS * WARP_STEP && row % WARP_STEP < 2 * INNER));
}
__device__ __forceinline__ Vector* ring_beside(Vector* ring, int tile) {
  return ring + STAGES * STAGE_VECTORS + tile % 2 * BLOCK_CHANNELS * BESIDE_VECTORS;
}
__device__ __forceinline__ int place_beside(int row, int n) {
  using Lay = Layout<Hidden>;
  return Lay::place(OVER_X ? (row / WARP_STEP - 1) * 2 * INNER + row % WARP_STEP : Lay::slot_of_row(row), n);
}

// Which rows a block has of a unit: BLOCK_CHANNELS slices that share their weights.
struct Rows {
  int unit, units, units_of_block, channels, per_group;  // `unit`: the block's first, of `units`
  int width, first, band_rows;                           // `first`: the row of the slice that the block's first is

  // There are fewer than 2^30 units: 32-bit divisions, on which a block spends its first microsecond.
  __device__ __forceinline__ bool several() const { return PACKED && units_of_block > 1; }
  __device__ __forceinline__ int unit_of(int row) const { return several() ? unit + row / width : unit; }
  __device__ __forceinline__ int row_of(int row) const { return several() ? row % width : first + row; }
  __device__ __forceinline__ bool exists(int row) const {
    if (PACKED) return row < units_of_block * width && unit_of(row) < units;
    return row_of(row) >= 0 && row_of(row) < width && row < band_rows + 2 * OUTER;
  }
  __device__ __forceinline__ bool owns(int row) const {
    return exists(row) && (PACKED || (row >= OUTER && row < OUTER + band_rows));
  }
  __device__ __forceinline__ int channel(int row) const { return unit_of(row) * BLOCK_CHANNELS; }

  template <typename Array>  // Image, or Taps, which have a slice per group
  __device__ __forceinline__ long long slice(const Array& array, int of_unit, bool grouped) const {
    const int channel_of_all = of_unit * BLOCK_CHANNELS, b = channel_of_all / channels, c = channel_of_all % channels;
    return array.slice(b, grouped ? c / per_group : c);
  }
};

// The vectors of an array of T that a copying thread has of every tile: each COPYING-th of them, from `thread` on. Over: of h, where
// it lies over x and λ; a warp has those that lie over its vectors of x and λ, twice as many, which are neighbours.
template <typename T, bool Over = false>
struct Strip {
  using Lay = Layout<T>;
  static constexpr int BYTES = piece_of<T>(), OF_PIECE = BYTES / sizeof(T), PIECES = 16 / BYTES;
  static constexpr int COUNT = Over ? 2 * Layout<SCALAR>::COUNT : Lay::COUNT;
  int thread;

  __device__ __forceinline__ int which(int k) const {
    return Over ? (thread / 32 * 2 + k % 2) * 32 + thread % 32 + k / 2 * 2 * COPYING : thread + k * COPYING;
  }
  __device__ __forceinline__ bool has(int k) const {
    return Lay::VECTORS % (Over ? 2 * COPYING : COPYING) == 0 || which(k) < Lay::VECTORS;
  }
  __device__ __forceinline__ int row(int k) const {
    return Lay::row_of_slot(ALONG ? which(k) / Lay::SLOT_VECTORS : which(k) % Lay::SLOTS);
  }
  __device__ __forceinline__ int n(int k) const {  // the same for all k along the scan
    return ALONG ? thread % Lay::SLOT_VECTORS : which(k) / Lay::SLOTS;
  }
  __device__ __forceinline__ int place(int k) const {  // COPYING vectors hold whole periods of Lay::place
    if (Over) return place_over(which(k % 2) / Lay::SLOT_VECTORS, n(0)) + k / 2 * COPYING;
    static_assert(!ALONG || Over || (Lay::SLOT_VECTORS <= 8 && COPYING % (8 * Lay::SLOT_VECTORS) == 0),
                  "whole periods");
    return ALONG ? Lay::place(thread / Lay::SLOT_VECTORS, n(0)) + k * COPYING : which(k);
  }
  // The first line of piece j of a vector, and whether that piece of a vector that exists is in a tile of which `left` lines exist.
  // That most tiles are whole has to be asked first, or the compiler keeps an answer for each piece in a register.
  __device__ __forceinline__ int line(int k, int j) const {
    return Lay::first_line(n(k)) + (!ALONG ? 0 : REVERSED ? Lay::VECTOR - (j + 1) * OF_PIECE : j * OF_PIECE);
  }
  __device__ __forceinline__ bool in(int k, int j, int left, const Rows& rows) const {
    return (left >= LINES || line(k, j) < left) && (ALONG || j == 0 || rows.exists(row(k) + j * OF_PIECE));
  }
};

// A copying thread keeps the addresses of its vectors in registers, and when it has written h out (OVER_BOTH: its warp has) it may
// start the next copy over it. An address is that of tile 0. Strides are positive. Of a vector at the very start of an array a few pieces only may exist in
// reversed scans, and then it begins before the array, by less than LINES. NOWHERE is the address of no vector, as aligned as any:
// copies of no bytes start there, or past an array's end.
constexpr Offset NOWHERE = -1024;
static_assert(LINES < 1024, "no vector is there");
struct Strips {  // of all arrays
  Strip<WEIGHT> taps;
  Strip<SCALAR> images;
  Strip<Hidden, OVER_BOTH> hidden;
  Strip<Before> before;

  __device__ __forceinline__ explicit Strips(int thread)
      : taps{thread}, images{thread}, hidden{thread}, before{thread} {}
};
struct Copier {
  Strips strips;
  Offset taps[Layout<WEIGHT>::COUNT], x[Layout<SCALAR>::COUNT], lam[Layout<SCALAR>::COUNT];
  static constexpr int LEAVING = ALONG ? Strip<Hidden, OVER_BOTH>::COUNT : 1;
  Offset h[LEAVING];
  Offset before[ADDENDS_STAGED ? Layout<Before>::COUNT : 1];
  Offset u[!HAS_U ? 1 : ALONG ? LEAVING : Layout<SCALAR>::COUNT];
  int beside_at[BESIDE_ROWS ? LEAVING : 1];  // where h lies beside the ring; -1: over x
  Addends<Layout<Hidden>::VECTOR> addends[MERGING ? BLOCK_CHANNELS : 1][MERGING ? LEAVING : 1];

  __device__ __forceinline__ explicit Copier(int thread) : strips(thread) {}

  // The same strips. Where h lies over both, there are so many addresses that what they are made of must not wait in registers, too.
  __device__ __forceinline__ Strips aimed() const {
    return OVER_BOTH && !MERGING ? Strips(anew(strips.taps.thread)) : strips;
  }

  // Where a vector of a strip lies in an array; `first`: the slice of the block's first unit, the only one it often has.
  template <typename T, bool Over, typename Array>
  static __device__ __forceinline__ Offset address(const Rows& rows, const Strip<T, Over>& strip, int k,
                                                   const Array& array, bool grouped, long long first) {
    const int row = strip.row(k);
    const long long slice = rows.several() ? rows.slice(array, rows.unit_of(row), grouped) : first;
    return static_cast<Offset>(slice) + rows.row_of(row) * static_cast<Offset>(array.cross) +
           Layout<T>::lowest_line(strip.n(k)) * static_cast<Offset>(array.line);
  }

  // Take up the unit that is to be loaded.
  __device__ __forceinline__ void aim(const Rows& rows, const Geometry& geometry) {
    const Strips from = aimed();
    const long long first_taps = rows.slice(geometry.weight, rows.unit, true);
    const long long first_x = rows.slice(geometry.x, rows.unit, false);
    const long long first_lam = HAS_LAM ? rows.slice(geometry.lam, rows.unit, false) : 0;
    const long long first_u = ADDENDS_STAGED && HAS_U ? rows.slice(geometry.u, rows.unit, false) : 0;
#pragma unroll
    for (int k = 0; k < Layout<WEIGHT>::COUNT; ++k) {
      const bool exists = from.taps.has(k) && rows.exists(from.taps.row(k));
      taps[k] = exists ? address(rows, from.taps, k, geometry.weight, true, first_taps) : NOWHERE;
    }
#pragma unroll
    for (int k = 0; k < Layout<SCALAR>::COUNT; ++k) {
      const bool exists = from.images.has(k) && rows.exists(from.images.row(k));
      x[k] = exists ? address(rows, from.images, k, geometry.x, false, first_x) : NOWHERE;
      if (HAS_LAM) lam[k] = exists ? address(rows, from.images, k, geometry.lam, false, first_lam) : NOWHERE;
      if (ADDENDS_STAGED && HAS_U) {
        const bool owns = from.images.has(k) && rows.owns(from.images.row(k));
        u[k] = owns ? address(rows, from.images, k, geometry.u, false, first_u) : NOWHERE;
      }
    }
    if (ADDENDS_STAGED) {  // of its own rows only: a neighbour may be writing the others'
      const long long first = rows.slice(geometry.h, rows.unit, false);
#pragma unroll
      for (int k = 0; k < Layout<Before>::COUNT; ++k) {
        const bool owns = from.before.has(k) && rows.owns(from.before.row(k));
        before[k] = owns ? address(rows, from.before, k, geometry.h, false, first) : NOWHERE;
      }
    }
  }
  // Take up the unit whose h is to be stored.
  __device__ __forceinline__ void aim_back(const Rows& rows, const Geometry& geometry) {
    const Strips from = aimed();
    const long long first = rows.slice(geometry.h, rows.unit, false);
    const long long first_u = HAS_U ? rows.slice(geometry.u, rows.unit, false) : 0;
#pragma unroll
    for (int k = 0; k < LEAVING; ++k) {
      const int row = from.hidden.row(k);
      const bool leaves = from.hidden.has(k) && rows.owns(row);
      h[k] = leaves ? address(rows, from.hidden, k, geometry.h, false, first) : NOWHERE;
      if (HAS_U) u[k] = leaves ? address(rows, from.hidden, k, geometry.u, false, first_u) : NOWHERE;
      if (BESIDE_ROWS) beside_at[k] = beside(row) ? place_beside(row, from.hidden.n(k)) : -1;
    }
  }
  // Start the copies of a tile of which `left` lines exist; what does not exist becomes 0.
  __device__ __forceinline__ void load(Vector* stage, const SCALAR* signal, const WEIGHT* weight, const SCALAR* scale,
                                       const Merge& merge, const Rows& rows, const Geometry& geometry, int tile,
                                       int left) const {
    const long long line = static_cast<long long>(tile) * LINES;
#pragma unroll
    for (int tap = 0; tap < 3; ++tap) {
      const WEIGHT* const from = weight + line * geometry.weight.line + tap * geometry.weight.tap;
      bring(strips.taps, stage + tap * TAPS_VECTORS, from, taps, left, rows);
    }
    Vector* const images = stage + 3 * TAPS_VECTORS;
#pragma unroll
    for (int c = 0; c < BLOCK_CHANNELS; ++c) {
      const SCALAR* const from_x = signal + line * geometry.x.line + c * geometry.x.channel;
      const SCALAR* const from_lam = scale + line * geometry.lam.line + c * geometry.lam.channel;
#pragma unroll
      for (int k = 0; k < Layout<SCALAR>::COUNT; ++k) {
        constexpr int BYTES = Strip<SCALAR>::BYTES, LAM = BLOCK_CHANNELS * IMAGE_VECTORS * Layout<SCALAR>::VECTOR;
        SCALAR* const target = reinterpret_cast<SCALAR*>(images + c * IMAGE_VECTORS + strips.images.place(k));
        const bool has = strips.images.has(k);
#pragma unroll
        for (int j = 0; j < Strip<SCALAR>::PIECES; ++j) {
          const int at = j * strips.images.OF_PIECE;
          const bool exists = x[k] != NOWHERE && strips.images.in(k, j, left, rows);
          copy_piece<BYTES, FETCH>(has, target + at, from_x + x[k] + at, exists);
          if (HAS_LAM) copy_piece<BYTES, FETCH>(has, target + LAM + at, from_lam + lam[k] + at, exists);
        }
        if (BYTES == 2) in_order();
      }
      if (ADDENDS_STAGED) {
        Vector* const addends = stage + ADDENDS_AT;
        const long long steps = line * geometry.h.line + c * geometry.h.channel;
        const long long steps_of_u = line * geometry.u.line + c * geometry.u.channel;
        const Before* const from = reinterpret_cast<const Before*>(merge.before + steps);
        if (merge.before) bring(strips.before, addends + c * BEFORE_VECTORS, from, before, left, rows);
        if constexpr (ADDENDS_STAGED && HAS_U) {
          Vector* const target = addends + BLOCK_CHANNELS * BEFORE_VECTORS + c * IMAGE_VECTORS;
          bring(strips.images, target, merge.u + steps_of_u, u, left, rows);
        }
      }
    }
  }
  template <typename T, int Count>
  static __device__ __forceinline__ void bring(const Strip<T>& strip, Vector* to, const T* from,
                                               const Offset (&offsets)[Count], int left, const Rows& rows) {
#pragma unroll
    for (int k = 0; k < Count; ++k) {
      T* const target = reinterpret_cast<T*>(to + strip.place(k));
#pragma unroll
      for (int j = 0; j < Strip<T>::PIECES; ++j) {
        const int at = j * Strip<T>::OF_PIECE;
        const bool exists = offsets[k] != NOWHERE && strip.in(k, j, left, rows);
        copy_piece<Strip<T>::BYTES, FETCH>(strip.has(k), target + at, from + offsets[k] + at, exists);
      }
      if (Strip<T>::BYTES == 2) in_order();
    }
  }

  // Along the scan: ask for what a tile's h will be merged with, of which `left` lines exist.
  __device__ __forceinline__ void ask(const Merge& merge, const Rows& rows, const Geometry& geometry, int tile,
                                      int left) {
    const long long line = static_cast<long long>(tile) * LINES;
#pragma unroll
    for (int c = 0; c < BLOCK_CHANNELS; ++c) {
      const long long from_u = line * geometry.u.line + c * geometry.u.channel;
      const long long from = line * geometry.h.line + c * geometry.h.channel;
#pragma unroll
      for (int k = 0; k < LEAVING; ++k) {
        if (h[k] != NOWHERE && strips.hidden.in(k, 0, left, rows))
          addends[c][k].read(merge, from_u + u[HAS_U ? k : 0], from + h[k]);
      }
    }
  }

  // Write a tile's h to global memory, along the scan. `count`: the block's tiles before it, which tells where it lies.
  __device__ __forceinline__ void store(Vector* ring, int count, RESULT* result, const Merge& merge, const Rows& rows,
                                        const Geometry& geometry, int tile, int left) const {
    const long long line = static_cast<long long>(tile) * LINES;
    const Vector* const over = stage_of(ring, count) + 3 * TAPS_VECTORS;
    const Vector* const aside = ring_beside(ring, count);
#pragma unroll
    for (int c = 0; c < BLOCK_CHANNELS; ++c) {
      RESULT* const to = result + line * geometry.h.line + c * geometry.h.channel;
#pragma unroll
      for (int k = 0; k < LEAVING; ++k) {
        const bool is_beside = BESIDE_ROWS && beside_at[k] >= 0;
        const Vector* const from =
            is_beside ? aside + c * BESIDE_VECTORS + beside_at[k] : over + c * IMAGE_VECTORS + strips.hidden.place(k);
        if constexpr (MERGING) {
          using Hiddens = Pack<Hidden, Layout<Hidden>::VECTOR>;
          if (h[k] != NOWHERE && strips.hidden.in(k, 0, left, rows)) {
            write_pack(to + h[k], addends[c][k].template add<RESULT>(merge, reinterpret_cast<const Hiddens&>(*from)));
          }
        } else {
#pragma unroll
          for (int j = 0; j < Strip<RESULT>::PIECES; ++j) {
            const int at = j * strips.hidden.OF_PIECE;
            copy_out<Strip<RESULT>::BYTES>(h[k] != NOWHERE && strips.hidden.in(k, j, left, rows), to + h[k] + at,
                                           reinterpret_cast<const RESULT*>(from) + at);
          }
        }
      }
    }
  }
};

}  // namespace gspn2
