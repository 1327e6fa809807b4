// What a scanning lane does with a tile: ROWS neighbouring rows of CHANNELS channels, a group of GROUP lines at a time.
#pragma once

#include "tile_ring.cuh"

namespace gspn2 {

constexpr int LANE_VECTORS = ALONG ? ROWS : ROWS / VECTOR * GROUP;  // vectors that a lane reads of an array for a group

// The vectors of a group of lines.
struct Group {
  Vector taps[3][LANE_VECTORS], signal[CHANNELS][LANE_VECTORS], scale[HAS_LAM ? CHANNELS : 1][LANE_VECTORS];

  // Which vector holds row r of line m of the group, and where in it.
  static __device__ __forceinline__ constexpr int vector(int r, int m) {
    return ALONG ? r : m * (ROWS / VECTOR) + r / VECTOR;
  }
  static __device__ __forceinline__ constexpr int element(int r, int m) {
    return REVERSED ? VECTOR - 1 - m : ALONG ? m : r % VECTOR;
  }
};

struct Scanner {
  State state[CHANNELS][ROWS];  // the line before
  int row0, set;                // first row within the block, channel set
  bool has_above, has_below;    // whether row0 - 1 and row0 + ROWS are in the image
  bool keeps;                   // whether these rows are this lane's own

  // Where vector v of the group that starts at line n0 lies within an array of a tile.
  __device__ __forceinline__ int place_of(int v, int n0) const {
    if (ALONG) return place(slot_of_row(row0 + v), REVERSED ? SLOT_VECTORS - 1 - n0 / VECTOR : n0 / VECTOR);
    return place(slot_of_row(row0 + v % (ROWS / VECTOR) * VECTOR), n0 + v / (ROWS / VECTOR));
  }

  __device__ __forceinline__ void read(Group& group, const Vector* stage, int n0) const {
#pragma unroll
    for (int v = 0; v < LANE_VECTORS; ++v) {
      const Vector* const from = stage + place_of(v, n0);
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) group.taps[tap][v] = from[tap * ARRAY_VECTORS];
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) {
        group.signal[c][v] = from[(3 + set * CHANNELS + c) * ARRAY_VECTORS];
        if (HAS_LAM) group.scale[c][v] = from[(3 + BLOCK_CHANNELS + set * CHANNELS + c) * ARRAY_VECTORS];
      }
    }
  }

  // h[t,i] = w0[t,i]·h[t-1,i-1] + w1[t,i]·h[t-1,i] + w2[t,i]·h[t-1,i+1] + λ[t,i]·x[t,i] for line m of the group. The result
  // takes the place of x.
  __device__ __forceinline__ void advance(Group& group, int m, bool restarts) {
    const auto value = [&](const Vector* vectors, int r) {
      return vectors[Group::vector(r, m)].widened(Group::element(r, m));
    };
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
      State line[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        line[r] = value(group.signal[c], r);
        if (HAS_LAM) line[r] *= value(group.scale[c], r);
      }
      if (!restarts) {
        State* const h = state[c];
        const State above = __shfl_up_sync(0xffffffffu, h[ROWS - 1], 1);
        const State below = __shfl_down_sync(0xffffffffu, h[0], 1);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
          const bool first = r == 0, last = r == ROWS - 1;
          line[r] = multiply_add(value(group.taps[1], r), h[r], line[r]);
          if (!last || has_below) line[r] = multiply_add(value(group.taps[2], r), last ? below : h[r + !last], line[r]);
          if (!first || has_above)
            line[r] = multiply_add(value(group.taps[0], r), first ? above : h[r - !first], line[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        state[c][r] = line[r];
        group.signal[c][Group::vector(r, m)].value[Group::element(r, m)] = narrow<SCALAR>(line[r]);
      }
    }
  }

  // Along the scan: leave h for the copying warps.
  __device__ __forceinline__ void leave(const Group& group, Vector* out, int n0) const {
    if (!keeps) return;
#pragma unroll
    for (int v = 0; v < LANE_VECTORS; ++v) {
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c)
        out[place_of(v, n0) + (set * CHANNELS + c) * ARRAY_VECTORS] = group.signal[c][v];
    }
  }

  // Across the scan: write h, which has `count` lines left from n0 on.
  __device__ __forceinline__ void write(const Group& group, SCALAR* to, const Image& h, int n0, int count) const {
    if (!keeps) return;
#pragma unroll
    for (int v = 0; v < LANE_VECTORS; ++v) {
      const int m = v / (ALONG ? 1 : ROWS / VECTOR), part = v % (ALONG ? 1 : ROWS / VECTOR);
      if (n0 + m >= count) continue;
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) {
        *reinterpret_cast<Vector*>(to + part * VECTOR + (n0 + m) * h.line + c * h.channel) = group.signal[c][v];
      }
    }
  }

  // Scan a tile. WHOLE: it has all its lines and none restarts; otherwise it has `count`, and line `restart` of it restarts,
  // then every `chunk` lines.
  template <bool WHOLE>
  __device__ __forceinline__ void scan(const Vector* stage, Vector* out, SCALAR* to, const Image& h, int count,
                                       int restart, int chunk) {
    Group group;
    if (WHOLE) read(group, stage, 0);
#pragma unroll(WHOLE ? LINES / GROUP : 1)
    for (int n0 = 0; n0 < (WHOLE ? LINES : count); n0 += GROUP) {
      Group next;  // on its way from shared memory while this one is computed
      if (!WHOLE) read(group, stage, n0);
      if (WHOLE && n0 + GROUP < LINES) read(next, stage, n0 + GROUP);
#pragma unroll
      for (int m = 0; m < GROUP; ++m) {
        const bool restarts = !WHOLE && n0 + m == restart;
        if (restarts) restart += chunk;
        if (WHOLE || n0 + m < count) advance(group, m, restarts);
      }
      if (ALONG) {
        leave(group, out, n0);
      } else {
        write(group, to, h, n0, WHOLE ? LINES : count);
      }
      if (WHOLE && n0 + GROUP < LINES) group = next;
    }
  }
};

}  // namespace gspn2
