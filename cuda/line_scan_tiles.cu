// One direction of the line scan at the speed of memory:
//
//     h[t,i] = w0[t,i]·h[t-1,i-1] + w1[t,i]·h[t-1,i] + w2[t,i]·h[t-1,i+1] + λ[t,i]·x[t,i],    h[-1] = h0 or 0
//
// Scanning warps keep the state in registers: a lane carries ROWS neighbouring rows of CHANNELS channels that share their
// weights, and gets the edge rows of its neighbours by two shuffles per line and channel. Copying warps bring tiles of LINES
// lines into a ring by asynchronous 16-byte copies, and along the scan take h out of it (tile_ring.cuh). All meet once a tile.
//
//   HALO = 0: a block holds one slice or several whole small ones, side by side (bands.units), in one warp per channel set.
//   HALO > 0: a slice is cut into bands of rows, WARPS warps to a block, each overlapping its neighbours by HALO rows on both
//             sides. What a warp computes in its halo becomes wrong from the outside in, a row per line; every HALO lines
//             the halo is refreshed from the warp that owns it: through shared memory within a block, and between blocks,
//             which must all run at the same time, through tagged words. With CLUSTER > 1 the bands of a slice are a
//             cluster and the words lie in its shared memory; otherwise in global memory (a cooperative launch).
//
// ALONG = 1: pixels are contiguous along the scan (horizontal scans); REVERSED = 1: it runs towards lower addresses.
// ALONG = 0: pixels are contiguous across the scan (vertical scans); lanes write h themselves.
// Bytes moved: x, λ, h once per pixel and channel, three weights once per pixel and SETS·CHANNELS channels; and the share
// 2·HALO / BLOCK_ROWS of the reads again, from L2.
// Specialised by SCALAR, STATE (float), OFFSET, ALONG, REVERSED, HAS_LAM, ROWS, CHANNELS, SETS, WARPS, COPIERS, LINES, HALO,
// STAGES, GROUP (lines that a lane loads at once; VECTOR along the scan), BLOCKS (that a multiprocessor must hold at once), CLUSTER.
#include "tile_scan.cuh"

using namespace gspn2;

namespace {

// Where a block finds the edge rows of its neighbour: side 0 is above, 1 below, among its own boxes. A word carries the number of its exchange, so
// a box needs no emptying, and three boxes in turn do: a warp publishes exchange e + 1 when all warps of its block have met
// after exchange e, so they all have read e − 1; whoever reads e + 1 may therefore fill the box of e − 1 with e + 2.
constexpr int BOXES = 3;
constexpr int BOX_WORDS = 2 * BOXES * BLOCK_CHANNELS * HALO;
__device__ __forceinline__ unsigned long long* mailbox(unsigned long long* mail, int side, unsigned exchange,
                                                       int channel) {
  return mail + ((side * BOXES + exchange % BOXES) * BLOCK_CHANNELS + channel) * HALO;
}
__device__ __forceinline__ unsigned long long sealed(State value, unsigned exchange) {
  return static_cast<unsigned long long>(exchange) << 32 | __float_as_uint(value);
}
__device__ __forceinline__ State opened(unsigned long long word) {
  return __uint_as_float(static_cast<unsigned>(word));
}

}  // namespace

#if CLUSTER > 1
#define CLUSTER_OF_BLOCKS __cluster_dims__(CLUSTER, 1, 1)
#else
#define CLUSTER_OF_BLOCKS
#endif

extern "C" __global__ void CLUSTER_OF_BLOCKS __launch_bounds__(THREADS, BLOCKS)
    line_scan_tiles(const SCALAR* x,           // [B, C, T, I]
                    const SCALAR* weight,      // [B, G, 3, T, I]
                    const SCALAR* lam,         // [B, C, T, I] or null: 1
                    const State* h0,           // [B, C, I] or null: no previous line
                    SCALAR* h,                 // [B, C, T, I]
                    State* h_last,             // [B, C, I] or null
                    unsigned long long* mail,  // [blocks, BOX_WORDS] zeros, or null: a cluster or one band
                    const Geometry geometry) {
  const Scan& scan = geometry.scan;
  const Bands& bands = geometry.bands;
  Vector* const ring = dynamic_shared<Vector>();
  Addresses& addresses = *reinterpret_cast<Addresses*>(ring + RING_VECTORS);
  State* const edges = reinterpret_cast<State*>(&addresses + 1);  // [2][BLOCK_CHANNELS][BLOCK_ROWS]: between warps

  // From one lane's mouth, so that the compiler knows that a warp's lanes agree: where it doubts that, it guards every
  // shuffle and schedules no instruction across it.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  const bool scans = warp < SCANNERS / 32;
  const int lane = threadIdx.x % 32, set = warp % SETS;
  const int row0 = warp / SETS * WARP_STEP + lane * ROWS;  // a scanning lane's first row, within the block
  const int channel0 = set * CHANNELS;                     // and channel

  const int width = static_cast<int>(scan.width);
  const int band = static_cast<int>(blockIdx.x) % static_cast<int>(bands.count),
            band_rows = static_cast<int>(bands.rows);
  const long long tiles = (scan.lines + LINES - 1) / LINES;
  // Units are BLOCK_CHANNELS slices that share their weights. There are fewer than 2^30: 32-bit divisions, on which each
  // block spends its first microsecond.
  const int channels = static_cast<int>(scan.channels), per_group = static_cast<int>(scan.channels_per_group);
  const int units = static_cast<int>(scan.batch) * (channels / BLOCK_CHANNELS);
  const int bands_of_slice = static_cast<int>(bands.count), units_of_block = static_cast<int>(bands.units);
  unsigned exchanges = 0;

  unsigned long long *mail_above = nullptr, *mail_below = nullptr;  // the neighbours' boxes, where there are neighbours
  if (CLUSTER > 1) {
    mail = reinterpret_cast<unsigned long long*>(edges + (WARPS > 1 ? 2 * BLOCK_CHANNELS * BLOCK_ROWS : 0));
    for (int k = threadIdx.x; k < BOX_WORDS; k += THREADS) mail[k] = 0;
    cluster_sync();
    if (band > 0) mail_above = in_block_of_cluster(mail, band - 1);
    if (band + 1 < bands_of_slice) mail_below = in_block_of_cluster(mail, band + 1);
  } else if (bands_of_slice > 1) {
    mail += static_cast<long long>(blockIdx.x) * BOX_WORDS;
    if (band > 0) mail_above = mail - BOX_WORDS;
    if (band + 1 < bands_of_slice) mail_below = mail + BOX_WORDS;
  }

  for (int unit0 = static_cast<int>(blockIdx.x) / bands_of_slice * units_of_block; unit0 < units;
       unit0 += static_cast<int>(gridDim.x) / bands_of_slice * units_of_block) {
    // Rows of the block: the row of the slice, the unit it belongs to, and who is there.
    const auto unit_of = [&](int row) { return HALO ? unit0 : unit0 + row / width; };
    const auto row_of = [&](int row) { return HALO ? band * band_rows - HALO + row : row % width; };
    const auto exists = [&](int row) {
      if (HALO) return row_of(row) >= 0 && row_of(row) < width && row < band_rows + 2 * HALO;
      return row < units_of_block * width && unit_of(row) < units;
    };
    const auto owned = [&](int row) { return exists(row) && (!HALO || (row >= HALO && row < HALO + band_rows)); };

    for (int slot = threadIdx.x; slot < SLOTS; slot += THREADS) {
      const int row = row_of_slot(slot);
      const int channel = unit_of(row) * BLOCK_CHANNELS;
      const int b = channel / channels, c = channel % channels, i = row_of(row), group = c / per_group;
      const bool is = exists(row);
      addresses.x[slot] = is ? static_cast<Offset>(geometry.x.slice(b, c) + i * geometry.x.cross) : Offset(-1);
      addresses.lam[slot] = is ? static_cast<Offset>(geometry.lam.slice(b, c) + i * geometry.lam.cross) : Offset(-1);
      addresses.weight[slot] =
          is ? static_cast<Offset>(geometry.weight.slice(b, group) + i * geometry.weight.cross) : Offset(-1);
      addresses.h[slot] = owned(row) ? static_cast<Offset>(geometry.h.slice(b, c) + i * geometry.h.cross) : Offset(-1);
    }
    block_sync();

    if (!scans) {
      // --- copy: one group of copies per tile, empty past the end ---------------------------------------------------
      const Copier copier(addresses, geometry, static_cast<int>(threadIdx.x) - SCANNERS);
      const auto load = [&](long long tile) {
        if (tile < tiles) {
          copier.load(stage_of(ring, tile), x, weight, lam, geometry, tile, scan.lines - tile * LINES);
        }
        copy_async_commit();
      };
      const auto store = [&](long long tile) {
        copier.store(out_of(ring, tile), h, geometry, tile, scan.lines - tile * LINES);
      };
      for (int tile = 0; tile < STAGES - 1; ++tile) load(tile);
      copy_async_wait<STAGES - 2>();
      block_sync();
      for (long long tile = 0; tile < tiles; ++tile) {
        if (ALONG && tile > 0) store(tile - 1);
        load(tile + STAGES - 1);
        copy_async_wait<STAGES - 2>();
        block_sync();
      }
      if (ALONG && tiles > 0) store(tiles - 1);
    } else {
      // --- scan -----------------------------------------------------------------------------------------------------
      Scanner scanner;
      scanner.row0 = row0;
      scanner.set = set;
      scanner.has_above = exists(row0) && row_of(row0) > 0;
      scanner.has_below = exists(row0) && row_of(row0) + ROWS < width;
      scanner.keeps = owned(row0) && (!HALO || (lane >= HALO / ROWS && lane < 32 - HALO / ROWS));
      const bool keeps = scanner.keeps;
      auto& state = scanner.state;
      const int channel = unit_of(row0) * BLOCK_CHANNELS + channel0, b = channel / channels, c0 = channel % channels;
      SCALAR* to = h + (ALONG || !keeps ? 0 : addresses.h[slot_of_row(row0)] + channel0 * geometry.h.channel);

#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
          state[c][r] = h0 && exists(row0) ? h0[geometry.first.at(b, c0 + c, row_of(row0) + r)] : State(0);
        }
      }
      long long restart = h0 ? scan.chunk : 0;  // the next line without a previous one
      block_sync();

      for (long long tile = 0; tile < tiles; ++tile, to += LINES * geometry.h.line) {
        const long long left = scan.lines - tile * LINES, restart_in = restart - tile * LINES;
        if (left >= LINES && restart_in >= LINES) {
          scanner.scan<true>(stage_of(ring, tile), out_of(ring, tile), to, geometry.h, LINES, 0, 0);
        } else {
          const int chunk = static_cast<int>(min(scan.chunk, static_cast<long long>(LINES)));
          scanner.scan<false>(stage_of(ring, tile), out_of(ring, tile), to, geometry.h,
                              static_cast<int>(min(left, static_cast<long long>(LINES))),
                              static_cast<int>(min(restart_in, static_cast<long long>(LINES))), chunk);
          while (restart < (tile + 1) * LINES) restart += scan.chunk;
        }

        // --- every HALO lines: hand the edges to the neighbours' halos ----------------------------------------------
        const bool exchange = HALO && (tile + 1) * LINES % (HALO ? HALO : 1) == 0 && tile + 1 < tiles;
        if (exchange) {
          ++exchanges;
          if (keeps) {
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) {
#pragma unroll
              for (int r = 0; r < ROWS; ++r) {
                const int channel = channel0 + c;
                const int from_top = row0 + r - HALO, from_bottom = band_rows - 1 - from_top;
                if (from_top < HALO && band > 0) {
                  publish(mailbox(mail_above, 1, exchanges, channel) + from_top, sealed(state[c][r], exchanges));
                }
                if (from_bottom < HALO && band + 1 < bands.count) {
                  publish(mailbox(mail_below, 0, exchanges, channel) + HALO - 1 - from_bottom,
                          sealed(state[c][r], exchanges));
                }
                if (WARPS > 1) edges[(exchanges % 2 * BLOCK_CHANNELS + channel) * BLOCK_ROWS + row0 + r] = state[c][r];
              }
            }
          }
        }
        block_sync();
        if (exchange) {
          if (!keeps && exists(row0)) {
            const int beyond = row0 - HALO - band_rows;
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) {
#pragma unroll
              for (int r = 0; r < ROWS; ++r) {
                const int channel = channel0 + c;
                if (row0 < HALO) {
                  state[c][r] = opened(await_tag(mailbox(mail, 0, exchanges, channel) + row0 + r, exchanges));
                } else if (beyond >= 0) {
                  state[c][r] = opened(await_tag(mailbox(mail, 1, exchanges, channel) + beyond + r, exchanges));
                } else {
                  state[c][r] = edges[(exchanges % 2 * BLOCK_CHANNELS + channel) * BLOCK_ROWS + row0 + r];
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
#pragma unroll
          for (int r = 0; r < ROWS; ++r) h_last[geometry.last.at(b, c0 + c, row_of(row0) + r)] = state[c][r];
        }
      }
    }
    block_sync();  // everyone is done with this unit's addresses and tiles
  }
  if (CLUSTER > 1) cluster_sync();  // nobody leaves while a neighbour may still write to its shared memory
}
