// What a scanning lane does with a tile: ROWS neighbouring rows of one channel, a group of GROUP lines at a time.
#pragma once

#include "tile_ring.cuh"

namespace gspn2 {

constexpr int ACROSS = ALONG ? 1 : ROWS;  // rows that a lane reads at once
constexpr int PACK = ALONG ? GROUP : ROWS;
constexpr int PACKS = ALONG ? ROWS : GROUP;  // in a group

// A tile is scanned in parts of SUB lines, between which halos may be refreshed. A part that the image does not fill, and the
// first one of an image, are left to slower code; so along the scan, without halos and where nothing is read ahead, parts are short.
__device__ constexpr int gcd(int a, int b) {
  return b == 0 ? a : gcd(b, a % b);
}
constexpr int SUB = gcd(ALONG && !AHEAD && INNER + OUTER == 0 ? GROUP : LINES, gcd(INNER, OUTER));

// Whether the first lines of a part are read before its edges have come. With four rows of 16 bits in a lane it costs more than it
// hides (docs/optimization_log.md).
constexpr bool EARLY = AHEAD || sizeof(SCALAR) == 4;

static_assert(INNER % ROWS == 0 && OUTER % ROWS == 0 && SUB % GROUP == 0, "whole lanes, groups");
static_assert(WARPS == 1 ? INNER == 0 : INNER > 0 && OUTER % INNER == 0, "halos");
static_assert(STAGES >= 2 && sizeof(State) == 4 && (ALONG || !REVERSED), "vertical scans know no reversed lines");

// The vectors of a group of lines.
struct Group {
  Pack<WEIGHT, PACK> taps[3][PACKS];
  Pack<SCALAR, PACK> signal[PACKS], scale[HAS_LAM ? PACKS : 1];

  // Which pack holds row r of line m of the group, and where in it.
  static __device__ __forceinline__ constexpr int pack(int r, int m) { return ALONG ? r : m; }
  static __device__ __forceinline__ constexpr int element(int r, int m) {
    return REVERSED ? GROUP - 1 - m : ALONG ? m : r;
  }
};

struct Scanner {
  State state[ROWS];          // the line before
  int row0, set, warp, lane;  // first row within the block, channel, warp of the rows, lane
  bool has_above, has_below;  // whether row0 - 1 and row0 + ROWS are in the image
  bool exists, mine, keeps;   // whether these rows exist, are this warp's own, are this block's own too
  bool gives;                 // whether they are edges that another warp of the block wants
  int exist;                  // how many of them do, if any
  State* edges = nullptr;     // this lane's, of [2][BLOCK_CHANNELS][BLOCK_ROWS]: between warps
  int side = 0;               // which of both is in use, in elements
  Vector *stage, *aside;      // this tile, and what lies beside it
  Group group;                // the lines that are computed

  // Go to the block's first tile, and on to the next one.
  __device__ __forceinline__ void start(Vector* ring) {
    stage = ring;
    aside = ring_beside(ring, 0) + set * BESIDE_VECTORS;
  }
  __device__ __forceinline__ void go_on(Vector* ring) {
    stage = stage == stage_of(ring, STAGES - 1) ? ring : stage + STAGE_VECTORS;
    if (BESIDE_ROWS) aside = ring_beside(ring, aside < ring_beside(ring, 1)) + set * BESIDE_VECTORS;
  }

  // Neighbouring elements of pack p of the group that starts at line n0, in an array of T.
  template <typename T>
  __device__ __forceinline__ Pack<T, PACK> pack_at(const Vector* array, int p, int n0) const {
    using Lay = gspn2::Layout<T>;
    Pack<T, PACK> result;
    if (ALONG) {
      const int n = (REVERSED ? LINES - GROUP - n0 : n0) / Lay::VECTOR;
#pragma unroll
      for (int v = 0; v < PACK / Lay::VECTOR; ++v) {
        reinterpret_cast<Vector&>(result.value[v * Lay::VECTOR]) = array[Lay::place(Lay::slot_of_row(row0 + p), n + v)];
      }
    } else {
      constexpr int PART = PACK > Lay::VECTOR ? Lay::VECTOR : PACK;
      const T* const line = reinterpret_cast<const T*>(array + (n0 + p) * Lay::SLOTS) + row0;
#pragma unroll
      for (int k = 0; k < PACK; k += PART) {
        reinterpret_cast<Pack<T, PART>&>(result.value[k]) = *reinterpret_cast<const Pack<T, PART>*>(line + k);
      }
    }
    return result;
  }

  __device__ __forceinline__ void read(Group& group, int n0) const {
    const Vector* const images = stage + 3 * TAPS_VECTORS + set * IMAGE_VECTORS;
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) group.taps[tap][p] = pack_at<WEIGHT>(stage + tap * TAPS_VECTORS, p, n0);
      group.signal[p] = pack_at<SCALAR>(images, p, n0);
      if (HAS_LAM) group.scale[p] = pack_at<SCALAR>(images + BLOCK_CHANNELS * IMAGE_VECTORS, p, n0);
    }
  }

  __device__ __forceinline__ void advance(const Group& group, Pack<Hidden, PACK> (&result)[PACKS], int m,
                                          bool restarts) {
    State taps[3][ROWS], line[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const int p = Group::pack(r, m), k = Group::element(r, m);
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) taps[tap][r] = group.taps[tap][p].widened(k);
      line[r] = group.signal[p].widened(k);
      if (HAS_LAM) line[r] = multiply(line[r], group.scale[p].widened(k));
    }
    scan_line<ADJOINT, RAGGED>(state, taps, line, restarts, has_above, has_below, exist);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) result[Group::pack(r, m)].value[Group::element(r, m)] = narrow<Hidden>(line[r]);
  }

  // Along the scan: leave h for the copying warps.
  __device__ __forceinline__ void leave(const Pack<Hidden, PACK> (&result)[PACKS], int n0) const {
    using Lay = gspn2::Layout<Hidden>;
    const int n = (REVERSED ? LINES - GROUP - n0 : n0) / Lay::VECTOR;
    const bool is_beside = beside(row0);
    Vector* const over = stage + 3 * TAPS_VECTORS + set * IMAGE_VECTORS;
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
#pragma unroll
      for (int v = 0; v < PACK / Lay::VECTOR; ++v) {
        Vector* const to =
            is_beside ? aside + place_beside(row0 + p, n + v) : over + place_over(Lay::slot_of_row(row0 + p), n + v);
        write_shared(keeps, to, reinterpret_cast<const Vector&>(result[p].value[v * Lay::VECTOR]));
      }
    }
  }

  // What leaves of a pack of h across the scan, at line n of a tile: h, or what it is merged into.
  template <typename Lines>
  __device__ __forceinline__ Pack<RESULT, PACK> merged(const Lines& h, const Merge& merge, int n) const {
    if constexpr (MERGING) {
      const Vector* const addends_at = stage + ADDENDS_AT;
      Addends<PACK> addends;
      if (merge.before) addends.before = pack_at<State>(addends_at + set * BEFORE_VECTORS, 0, n);
      if (HAS_U) addends.u = pack_at<SCALAR>(addends_at + BLOCK_CHANNELS * BEFORE_VECTORS + set * IMAGE_VECTORS, 0, n);
      return addends.template add<RESULT>(merge, h);
    } else {
      return h;
    }
  }

  // Across the scan: write h, or what it was merged into, which has `left` lines from n0 on, `step` apart.
  __device__ __forceinline__ void write(const Pack<RESULT, PACK> (&result)[PACKS], RESULT* to, Offset step, int n0,
                                        int left) const {
    constexpr int OF_PIECE = Strip<RESULT>::OF_PIECE, PART = PACK > OF_PIECE ? OF_PIECE : PACK;
    // Several pieces of a lane share 32 bytes of L2, and have to leave one right after the other. After a branch they do.
    if (PART < PACK && !keeps) return;
#pragma unroll
    for (int m = 0; m < PACKS; ++m) {
#pragma unroll
      for (int k = 0; k < PACK; k += PART) {
        const bool wanted = (PART < PACK || keeps) && n0 + m < left && (!RAGGED || k < exist);
        write_global(wanted, reinterpret_cast<Pack<RESULT, PART>*>(to + (n0 + m) * step + k),
                     reinterpret_cast<const Pack<RESULT, PART>&>(result[m].value[k]));
      }
    }
  }

  // Every INNER lines the warps of a block refresh their halos: first all give, then, when they have met, all take.
  static constexpr int AT_ONCE = ROWS < 4 ? ROWS : 4;
  using Edges = Pack<State, AT_ONCE>;
  __device__ __forceinline__ void give_inner() {
    side = SETS * BLOCK_ROWS - side;
#pragma unroll
    for (int r = 0; r < ROWS; r += AT_ONCE) {
      write_shared(gives, reinterpret_cast<Edges*>(edges + side + r), reinterpret_cast<const Edges&>(state[r]));
    }
  }
  __device__ __forceinline__ void take_inner() {
#pragma unroll
    for (int r = 0; r < ROWS; r += AT_ONCE) {
      Edges rows = reinterpret_cast<const Edges&>(state[r]);
      read_shared(!mine, rows, reinterpret_cast<const Edges*>(edges + side + r));
#pragma unroll
      for (int k = 0; k < AT_ONCE; ++k) state[r + k] = rows.value[k];
    }
  }

  // Read the first group of the next part, before its edges are there.
  __device__ __forceinline__ void prepare(int first) {
    if (EARLY) read(group, first);
  }

  // Scan SUB lines of a tile, from line `first` on. WHOLE: all are there and none restarts; otherwise `left` are, and line
  // `restart` of them restarts, then every `chunk` lines. h is written to `to` on, a line every `step` elements.
  template <bool WHOLE>
  __device__ __forceinline__ void scan(int first, RESULT* to, Offset step, const Merge& merge, int left, int restart,
                                       int chunk) {
#pragma unroll(WHOLE ? SUB / GROUP : 1)
    for (int n0 = 0; n0 < (WHOLE ? SUB : left); n0 += GROUP) {
      Group next;  // on its way from shared memory while this one is computed
      if (!WHOLE || !(n0 == 0 ? EARLY : AHEAD)) read(group, first + n0);
      const bool goes_on = n0 + GROUP < SUB;
      if (WHOLE && AHEAD && goes_on) read(next, first + n0 + GROUP);
      Pack<Hidden, PACK> result[PACKS];
#pragma unroll
      for (int m = 0; m < GROUP; ++m) {
        const bool restarts = !WHOLE && n0 + m == restart;
        if (restarts) restart += chunk;
        if (WHOLE || n0 + m < left) advance(group, result, m, restarts);
      }
      if (ALONG) {
        leave(result, first + n0);
      } else {
        Pack<RESULT, PACK> leaving[PACKS];
#pragma unroll
        for (int m = 0; m < PACKS; ++m) leaving[m] = merged(result[m], merge, first + n0 + m);
        write(leaving, to, step, n0, WHOLE ? SUB : left);
      }
      if (WHOLE && AHEAD && goes_on) group = next;
    }
  }
};

}  // namespace gspn2
