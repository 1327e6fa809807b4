// One direction of the line scan at the speed of memory:
//
//     h[t,i] = w0[t,i]·h[t-1,i-1] + w1[t,i]·h[t-1,i] + w2[t,i]·h[t-1,i+1] + λ[t,i]·x[t,i],    h[-1] = h0 or 0
//
// Each lane carries ROWS neighbouring rows of CHANNELS channels in registers and gets its neighbours' edge rows by two
// shuffles per line and channel. Tiles of LINES lines arrive by asynchronous 16-byte copies in a ring of STAGES tiles.
// Channels that share weights share their loads and conversions.
//
// Two ways to lay warps over rows:
//   HALO = 0: one warp per block, holding one slice or several whole small ones, side by side.
//   HALO > 0: a slice cut into bands of rows, WARPS warps to a block, each overlapping its neighbours by HALO rows on both
//             sides. What a warp computes in its halo becomes wrong from the outside in, a row per line; every HALO lines
//             the halo is refreshed from the warp that owns it, through shared memory within a block, through tagged words
//             in global memory between blocks, which must then all be resident.
//
// ALONG = 1: pixels are contiguous along the scan (horizontal scans). A lane reads 16 bytes of a row at a time, and h goes
//            back through the tile. REVERSED = 1: the scan runs towards lower addresses.
// ALONG = 0: pixels are contiguous across the scan (vertical scans). A lane reads 16 bytes of a line at a time and writes h
//            itself.
// Bytes moved: x, λ, h once per pixel and channel, three weights once per pixel and CHANNELS channels; and the share
// 2·HALO / (rows of a block) of the reads again, from L2.
// Specialised by SCALAR, STATE (float), ALONG, REVERSED, HAS_LAM, ROWS, CHANNELS, WARPS, LINES, HALO, STAGES, GROUP (lines
// that a lane loads at once; VECTOR along the scan).
#include "geometry.cuh"
#include "primitives.cuh"
#include "state.cuh"

using namespace gspn2;

namespace {

constexpr int THREADS = 32 * WARPS;
constexpr int VECTOR = 16 / sizeof(SCALAR);                     // elements of a 16-byte copy
constexpr int WARP_ROWS = 32 * ROWS;                            // rows of a warp, halo included
constexpr int WARP_STEP = WARP_ROWS - 2 * HALO;                 // rows it owns
constexpr int BLOCK_ROWS = (WARPS - 1) * WARP_STEP + WARP_ROWS; // rows of a block, outer halo included
constexpr int ARRAYS = 3 + CHANNELS * (1 + HAS_LAM);            // weights, then x, then λ
constexpr int SLOTS = ALONG ? BLOCK_ROWS : BLOCK_ROWS / VECTOR; // rows, or 16-byte groups of rows, that have an address
constexpr int SLOT_VECTORS = ALONG ? LINES / VECTOR : LINES;    // 16-byte vectors of a slot in a tile
// Rows of a tile along the scan are padded by one vector, and dealt out so that the lanes of a warp read successive ones:
// both keep 16-byte reads free of bank conflicts.
constexpr int SLOT_PITCH = ALONG ? SLOT_VECTORS + 1 : 1;
constexpr int LINE_PITCH = ALONG ? 1 : SLOTS;
constexpr int ARRAY_VECTORS = ALONG ? SLOTS * SLOT_PITCH : LINES * SLOTS;
constexpr int STAGE_VECTORS = ARRAYS * ARRAY_VECTORS;
// Where h waits for its way out along the scan: over x, unless another warp still reads that x for its halo.
constexpr bool OVER_X = WARPS == 1;
constexpr int OUT_VECTORS = ALONG && !OVER_X ? CHANNELS * ARRAY_VECTORS : 0;
constexpr int LANE_VECTORS = ALONG ? ROWS : ROWS / VECTOR * GROUP; // vectors of an array that a lane reads at once

static_assert(HALO == 0 ? WARPS == 1 : HALO % ROWS == 0 && HALO >= LINES && HALO % LINES == 0, "halo");
static_assert(ALONG ? LINES % VECTOR == 0 && GROUP == VECTOR : ROWS % VECTOR == 0 && !REVERSED, "vectors");
static_assert(LINES % GROUP == 0 && sizeof(State) == 4, "lines");

struct alignas(16) Vector {
  SCALAR value[VECTOR];
};

__device__ __forceinline__ int position(int slot) {
  return ALONG ? (slot % ROWS * (BLOCK_ROWS / ROWS) + slot / ROWS) * SLOT_PITCH : slot;
}

// The line of a tile at the lowest address of vector n of a slot. Reversed scans keep the order of addresses, so there the
// tile's first vector holds its last lines.
__device__ __forceinline__ int first_line(int n) {
  return REVERSED ? (SLOT_VECTORS - n) * VECTOR - 1 : ALONG ? n * VECTOR : n;
}

// Where a block finds the edge rows of its neighbour: side 0 is above, 1 below. A neighbour is at most one exchange ahead, so
// two boxes do. A letter carries the number of its exchange, so a box needs no emptying.
__device__ __forceinline__ unsigned long long* mailbox(unsigned long long* mail, long long block, int side,
                                                       unsigned exchange, int c) {
  return mail + (((block * 2 + side) * 2 + exchange % 2) * CHANNELS + c) * HALO;
}
__device__ __forceinline__ unsigned long long sealed(State value, unsigned exchange) {
  return static_cast<unsigned long long>(exchange) << 32 | __float_as_uint(value);
}
__device__ __forceinline__ State opened(unsigned long long word) {
  return __uint_as_float(static_cast<unsigned>(word));
}

// Where a slot's line 0 is in each array; -1 where there is nothing to read or write.
struct Addresses {
  long long x[SLOTS], lam[SLOTS], weight[SLOTS], h[SLOTS];
};

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS)
    line_scan_tiles(const SCALAR* x,           // [B, C, T, I]
                    const SCALAR* weight,      // [B, G, 3, T, I]
                    const SCALAR* lam,         // [B, C, T, I] or null: 1
                    const State* h0,           // [B, C, I] or null: no previous line
                    SCALAR* h,                 // [B, C, T, I]
                    State* h_last,             // [B, C, I] or null
                    unsigned long long* mail,  // [blocks, 2 sides, 2, CHANNELS, HALO] zeros, or null: no bands
                    const Geometry geometry) {
  const Scan& scan = geometry.scan;
  const Bands& bands = geometry.bands;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Vector* const ring = dynamic_shared<Vector>();
  Addresses& addresses = *reinterpret_cast<Addresses*>(ring + STAGES * STAGE_VECTORS + OUT_VECTORS);
  State* const edges = reinterpret_cast<State*>(&addresses + 1);  // [CHANNELS][BLOCK_ROWS], only with a halo

  const int band = static_cast<int>(blockIdx.x % bands.count);
  const long long tiles = (scan.lines + LINES - 1) / LINES;
  const long long units = scan.batch * (scan.channels / CHANNELS);  // CHANNELS slices that share their weights
  unsigned exchanges = 0;

  for (long long unit0 = blockIdx.x / bands.count * bands.units; unit0 < units;
       unit0 += gridDim.x / bands.count * bands.units) {
    // --- which rows: of a slot, and of this lane --------------------------------------------------------------------
    const long long first = band * bands.rows - (HALO ? HALO : 0);  // row of the block's first slot
    const auto unit_of = [&](int row) { return HALO ? unit0 : unit0 + row / static_cast<int>(scan.width); };
    const auto row_of = [&](int row) {
      return HALO ? first + row : static_cast<long long>(row % static_cast<int>(scan.width));
    };
    const auto exists = [&](int row) {
      if (HALO) return row_of(row) >= 0 && row_of(row) < scan.width && row < bands.rows + 2 * HALO;
      return row < bands.units * scan.width && unit_of(row) < units;
    };
    const auto owned = [&](int row) {
      if (!exists(row)) return false;
      return !HALO || (row_of(row) >= band * bands.rows && row_of(row) < (band + 1) * bands.rows);
    };
    __syncthreads();  // everyone is done with the last unit's addresses
    for (int slot = threadIdx.x; slot < SLOTS; slot += THREADS) {
      const int row = ALONG ? slot : slot * VECTOR;
      const long long channel = unit_of(row) * CHANNELS;
      const long long b = channel / scan.channels, c = channel % scan.channels, i = row_of(row);
      const bool is = exists(row);
      addresses.x[slot] = is ? geometry.x.slice(b, c) + geometry.x.pixel(0, i) : -1;
      addresses.lam[slot] = is ? geometry.lam.slice(b, c) + geometry.lam.pixel(0, i) : -1;
      addresses.weight[slot] =
          is ? geometry.weight.slice(b, c / scan.channels_per_group) + geometry.weight.pixel(0, i) : -1;
      addresses.h[slot] = owned(row) ? geometry.h.slice(b, c) + geometry.h.pixel(0, i) : -1;
    }
    const int row0 = warp * WARP_STEP + lane * ROWS;  // this lane's first row, within the block
    const bool has_above = exists(row0) && row_of(row0) > 0;
    const bool has_below = exists(row0) && row_of(row0) + ROWS < scan.width;
    const bool keeps = owned(row0) && (!HALO || (lane >= HALO / ROWS && lane < 32 - HALO / ROWS));
    const long long channel0 = unit_of(row0) * CHANNELS;
    const long long b = channel0 / scan.channels, c0 = channel0 % scan.channels;
    __syncthreads();

    // --- the ring: start the copies of a tile -----------------------------------------------------------------------
    const auto start = [&](long long tile) {
      if (tile < tiles) {
        Vector* const stage = ring + tile % STAGES * STAGE_VECTORS;
        for (int k = threadIdx.x; k < SLOTS * SLOT_VECTORS; k += THREADS) {
          const int slot = ALONG ? k / SLOT_VECTORS : k % SLOTS;
          const int n = ALONG ? k % SLOT_VECTORS : k / SLOTS;
          const long long t = tile * LINES + first_line(n);
          Vector* const target = stage + position(slot) + n * LINE_PITCH;
          const bool is = addresses.x[slot] >= 0 && t - (REVERSED ? VECTOR - 1 : 0) < scan.lines;
          const int bytes = is ? 16 : 0;
          const SCALAR* source = is ? weight + addresses.weight[slot] + t * geometry.weight.line : weight;
          for (int tap = 0; tap < 3; ++tap) {
            copy_async_16(target + tap * ARRAY_VECTORS, is ? source + tap * geometry.weight.tap : weight, bytes);
          }
#pragma unroll
          for (int c = 0; c < CHANNELS; ++c) {
            source = is ? x + addresses.x[slot] + t * geometry.x.line + c * geometry.x.channel : x;
            copy_async_16(target + (3 + c) * ARRAY_VECTORS, source, bytes);
            if (HAS_LAM) {
              source = is ? lam + addresses.lam[slot] + t * geometry.lam.line + c * geometry.lam.channel : lam;
              copy_async_16(target + (3 + CHANNELS + c) * ARRAY_VECTORS, source, bytes);
            }
          }
        }
      }
      copy_async_commit();
    };
    for (int tile = 0; tile < STAGES - 1; ++tile) start(tile);

    // --- the scan ---------------------------------------------------------------------------------------------------
    State state[CHANNELS][ROWS];
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        state[c][r] = h0 && exists(row0) ? h0[geometry.first.at(b, c0 + c, row_of(row0) + r)] : State(0);
      }
    }
    long long restart = h0 ? scan.chunk : 0;  // the next line without a previous one

    for (long long tile = 0; tile < tiles; ++tile) {
      copy_async_wait<STAGES - 2>();
      __syncthreads();
      start(tile + STAGES - 1);
      Vector* const stage = ring + tile % STAGES * STAGE_VECTORS;
      Vector* const out = OVER_X ? stage + 3 * ARRAY_VECTORS : ring + STAGES * STAGE_VECTORS;
      const int count = static_cast<int>(min(static_cast<long long>(LINES), scan.lines - tile * LINES));

#pragma unroll 1
      for (int n0 = 0; n0 < count; n0 += GROUP) {
        Vector taps[3][LANE_VECTORS], signal[CHANNELS][LANE_VECTORS], scale[CHANNELS][LANE_VECTORS];
        Vector* place[LANE_VECTORS];
#pragma unroll
        for (int v = 0; v < LANE_VECTORS; ++v) {
          const int slot = ALONG ? row0 + v : row0 / VECTOR + v % (ROWS / VECTOR);
          const int n = REVERSED ? SLOT_VECTORS - 1 - n0 / VECTOR : ALONG ? n0 / VECTOR : n0 + v / (ROWS / VECTOR);
          place[v] = stage + position(slot) + n * LINE_PITCH;
#pragma unroll
          for (int tap = 0; tap < 3; ++tap) taps[tap][v] = place[v][tap * ARRAY_VECTORS];
#pragma unroll
 #pragma unroll
         for (int c = 0; c < CHANNELS; ++c) {
            signal[c][v] = place[v][(3 + c) * ARRAY_VECTORS];
            if (HAS_LAM) scale[c][v] = place[v][(3 + CHANNELS + c) * ARRAY_VECTORS];
          }
        }
#pragma unroll
        for (int m = 0; m < GROUP; ++m) {
          const int element = REVERSED ? VECTOR - 1 - m : m;
          const auto at = [&](const Vector* vectors, int r) {
            return widen(ALONG ? vectors[r].value[element] : vectors[m * (ROWS / VECTOR) + r / VECTOR].value[r % VECTOR]);
          };
          if (!ALONG && n0 + m >= count) break;
          const long long t = tile * LINES + n0 + m;
          const bool restarts = t == restart;
          if (restarts) restart += scan.chunk;
#pragma unroll
 #pragma unroll
         for (int c = 0; c < CHANNELS; ++c) {
            State line[ROWS];
#pragma unroll
 #pragma unroll
           for (int r = 0; r < ROWS; ++r) {
              line[r] = at(signal[c], r);
              if (HAS_LAM) line[r] *= at(scale[c], r);
            }
            if (!restarts) {
              const State above = __shfl_up_sync(0xffffffffu, state[c][ROWS - 1], 1);
              const State below = __shfl_down_sync(0xffffffffu, state[c][0], 1);
#pragma unroll
 #pragma unroll
             for (int r = 0; r < ROWS; ++r) {
                line[r] = multiply_add(at(taps[1], r), state[c][r], line[r]);
                if (r + 1 < ROWS) {
                  line[r] = multiply_add(at(taps[2], r), state[c][r + 1 < ROWS ? r + 1 : r], line[r]);
                } else if (has_below) {
                  line[r] = multiply_add(at(taps[2], r), below, line[r]);
                }
                if (r > 0) {
                  line[r] = multiply_add(at(taps[0], r), state[c][r > 0 ? r - 1 : r], line[r]);
                } else if (has_above) {
                  line[r] = multiply_add(at(taps[0], r), above, line[r]);
                }
              }
            }
#pragma unroll
 #pragma unroll
           for (int r = 0; r < ROWS; ++r) {
              state[c][r] = line[r];
              if (ALONG) {
                signal[c][r].value[element] = narrow<SCALAR>(line[r]);
              } else {
                signal[c][m * (ROWS / VECTOR) + r / VECTOR].value[r % VECTOR] = narrow<SCALAR>(line[r]);
              }
            }
          }
        }
#pragma unroll
 #pragma unroll
       for (int c = 0; c < CHANNELS; ++c) {
#pragma unroll
          for (int v = 0; v < LANE_VECTORS; ++v) {
            if (ALONG) {
              if (keeps) out[place[v] - stage + c * ARRAY_VECTORS] = signal[c][v];
            } else if (const int m = v / (ROWS / VECTOR); keeps && n0 + m < count) {
              const long long slot = addresses.h[row0 / VECTOR + v % (ROWS / VECTOR)];
              SCALAR* const to = h + slot + (tile * LINES + n0 + m) * geometry.h.line + c * geometry.h.channel;
              *reinterpret_cast<Vector*>(to) = signal[c][v];
            }
          }
        }
      }

      // --- hand the edges to the neighbours' halos, and the tile out ------------------------------------------------
      const bool exchange = HALO && (tile + 1) * LINES % (HALO ? HALO : 1) == 0 && tile + 1 < tiles;
      if (exchange) {
        ++exchanges;
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
#pragma unroll
 #pragma unroll
         for (int r = 0; r < ROWS; ++r) {
            if (!keeps) continue;
            edges[c * BLOCK_ROWS + row0 + r] = state[c][r];
            const int from_top = row0 + r - HALO, from_bottom = static_cast<int>(bands.rows) - 1 - from_top;
            if (from_top < HALO && band > 0) {
              publish(mailbox(mail, blockIdx.x - 1, 1, exchanges, c) + from_top, sealed(state[c][r], exchanges));
            }
            if (from_bottom < HALO && band + 1 < bands.count) {
              publish(mailbox(mail, blockIdx.x + 1, 0, exchanges, c) + HALO - 1 - from_bottom,
                      sealed(state[c][r], exchanges));
            }
          }
        }
      }
      if (ALONG || exchange) __syncthreads();
      if (ALONG) {
        for (int k = threadIdx.x; k < SLOTS * SLOT_VECTORS; k += THREADS) {
          const int slot = k / SLOT_VECTORS, n = k % SLOT_VECTORS;
          const long long t = tile * LINES + first_line(n);
          if (addresses.h[slot] < 0 || t - (REVERSED ? VECTOR - 1 : 0) >= scan.lines) continue;
#pragma unroll
          for (int c = 0; c < CHANNELS; ++c) {
            SCALAR* const to = h + addresses.h[slot] + t * geometry.h.line + c * geometry.h.channel;
            *reinterpret_cast<Vector*>(to) = out[position(slot) + n * LINE_PITCH + c * ARRAY_VECTORS];
          }
        }
      }
      if (exchange) {
        if (!keeps && exists(row0)) {
          const int below_band = row0 - HALO - static_cast<int>(bands.rows);
#pragma unroll
          for (int c = 0; c < CHANNELS; ++c) {
#pragma unroll
 #pragma unroll
           for (int r = 0; r < ROWS; ++r) {
              if (row0 < HALO) {
                state[c][r] = opened(await_tag(mailbox(mail, blockIdx.x, 0, exchanges, c) + row0 + r, exchanges));
              } else if (below_band >= 0) {
                state[c][r] = opened(await_tag(mailbox(mail, blockIdx.x, 1, exchanges, c) + below_band + r, exchanges));
              } else {
                state[c][r] = edges[c * BLOCK_ROWS + row0 + r];
              }
            }
          }
        }
        __syncwarp();
      }
    }
    if (h_last && keeps) {
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) {
        for (int r = 0; r < ROWS; ++r) h_last[geometry.last.at(b, c0 + c, row_of(row0) + r)] = state[c][r];
      }
    }
  }
}
