// One direction of the line scan at the speed of memory:
//
//     h[t,i] = w0[t,i]·h[t-1,i-1] + w1[t,i]·h[t-1,i] + w2[t,i]·h[t-1,i+1] + λ[t,i]·x[t,i],    h[-1] = h0 or 0
//
// Scanning warps keep the state in registers: a lane carries ROWS neighbouring rows of one channel, and gets the edge rows of its
// neighbours by two shuffles a line. Copying warps bring tiles of LINES lines into a ring by asynchronous copies, from
// unit to unit without a pause, and along the scan take h out of it (tile_ring.cuh). All meet once a tile.
//
//   Whole slices (OUTER = 0): a block holds one slice, or several small ones side by side (bands.units, where WARPS = 1).
//   Bands (OUTER > 0): a slice is cut into bands of rows, which overlap their neighbours by OUTER rows on both sides.
//   WARPS warps of a block cut its rows again, and overlap by INNER rows on both sides.
//   SETS warps with the same rows have a channel each, which share their weights.
// What a band or a warp computes in its halo becomes wrong from the outside in, a row per line; so every INNER lines warps
// refresh their halos from the warp that owns those rows, through shared memory, and every OUTER lines bands do, through tagged
// words. With CLUSTER > 1 the bands of a slice are a cluster and the words lie in its shared memory; otherwise they lie in global
// memory, and all blocks must run at the same time (a cooperative launch).
//
// ALONG = 1: pixels are contiguous along the scan (horizontal scans); REVERSED = 1: it runs towards lower addresses.
// ALONG = 0: pixels are contiguous across the scan (vertical scans); lanes write h themselves.
// MERGING = 1: h is merged into a sum on its way out (merge_term.cuh) and is not written itself.
// ADJOINT = 1: the same for g[t] = dh[t] + A[t+1]ᵀ·g[t+1], its mirror image (scan_lane.cuh), with dh for x and g for h. What it
// carries from line to line becomes wrong in halos as h does, a row per line.
// Bytes moved: x, λ, h once per pixel and channel, three weights once per pixel and SETS channels; and the share
// 2·OUTER / BLOCK_ROWS of the reads again, from L2.
// Specialised by SCALAR (x, λ), WEIGHT, RESULT (h, sum), STATE (float), ADJOINT, MERGING, HAS_U, OFFSET, ALONG, REVERSED, HAS_LAM, ROWS, SETS, WARPS,
// COPIERS, LINES, INNER, OUTER, STAGES, GROUP (lines that a lane reads at once), AHEAD (whether it reads the next ones before it computes
// these), BLOCKS (that a multiprocessor must hold at once), CLUSTER, FETCH (bytes asked into L2 around each copy), PIECE (bytes of
// a copy: 16, or fewer where rows are no whole vectors), RAGGED (whether a lane may have rows beyond the image).
#include "tile_scan.cuh"

using namespace gspn2;

namespace {

// Where a block finds the edge rows of its neighbour: side 0 is above, 1 below, among its own boxes. A word carries the number
// of its exchange, so a box needs no emptying, and three boxes in turn do: a warp publishes exchange e + 1 when all warps of
// its channel have met after exchange e, so they all have read e − 1; whoever reads e + 1 may therefore fill the box of e − 1
// with e + 2.
constexpr int BOXES = 3, BOX_STEP = SETS * OUTER;
constexpr int BOX_WORDS = 2 * BOXES * BOX_STEP;
using Word = unsigned long long;
__device__ __forceinline__ Word sealed(State value, unsigned exchange) {
  return static_cast<Word>(exchange) << 32 | __float_as_uint(value);
}
__device__ __forceinline__ State opened(Word word) {
  return __uint_as_float(static_cast<unsigned>(word));
}

}  // namespace

#if CLUSTER > 1
#define CLUSTER_OF_BLOCKS __cluster_dims__(CLUSTER, 1, 1)
#else
#define CLUSTER_OF_BLOCKS
#endif

extern "C" __global__ void CLUSTER_OF_BLOCKS __launch_bounds__(THREADS, BLOCKS)
    line_scan_tiles(const SCALAR* x,       // [B, C, T, I]; adjoint: dh
                    const WEIGHT* weight,  // [B, G, 3, T, I]
                    const SCALAR* lam,     // [B, C, T, I] or null: 1
                    const State* h0,       // [B, C, I] or null: no previous line; adjoint: dh_last or null
                    RESULT* h,             // [B, C, T, I]; adjoint: g; merging: the sum
                    State* h_last,         // [B, C, I] or null; adjoint: dh0 or null
                    Word* mail,            // [blocks, BOX_WORDS] zeros, or null: a cluster or one band
#if MERGING
                    const State* before,  // [B, C, T, I] or null: 0; with h's strides
                    const SCALAR* u,      // [B, C, T, I]; only if HAS_U
                    const SCALAR* m,      // [1] or null: 1
#endif
                    const Geometry geometry) {
#if MERGING
  const Merge merge(u, before, m);
#else
  const Merge merge(nullptr, nullptr, nullptr);
#endif
  const Scan& scan = geometry.scan;
  const int bands = static_cast<int>(geometry.bands.count), units_of_block = static_cast<int>(geometry.bands.units);
  const int band = static_cast<int>(blockIdx.x) % bands, band_rows = static_cast<int>(geometry.bands.rows);
  const int tiles = static_cast<int>((scan.lines + LINES - 1) / LINES);
  const int channels = static_cast<int>(scan.channels);
  Rows rows;
  rows.channels = channels;
  rows.per_group = static_cast<int>(scan.channels_per_group);
  rows.width = static_cast<int>(scan.width);
  rows.units = static_cast<int>(scan.batch) * (channels / BLOCK_CHANNELS);
  rows.units_of_block = units_of_block;
  rows.first = band * band_rows - OUTER;
  rows.band_rows = band_rows;
  const int first_unit = static_cast<int>(blockIdx.x) / bands * units_of_block;
  const int unit_step = static_cast<int>(gridDim.x) / bands * units_of_block;

  Vector* const ring = kept(dynamic_shared<Vector>());
  State* const edges =
      reinterpret_cast<State*>(ring + RING_VECTORS);  // [2][SETS][BLOCK_ROWS] where there are several warps
  Word *mail_above = nullptr, *mail_below = nullptr;  // the neighbours' boxes, where there are neighbours
  if (CLUSTER > 1) {
    mail = reinterpret_cast<Word*>(edges + (WARPS > 1 ? 2 * SETS * BLOCK_ROWS : 0));
    for (int k = threadIdx.x; k < BOX_WORDS; k += THREADS) mail[k] = 0;
    cluster_sync();
    if (band > 0) mail_above = in_block_of_cluster(mail, band - 1);
    if (band + 1 < bands) mail_below = in_block_of_cluster(mail, band + 1);
  } else if (bands > 1) {
    mail += static_cast<long long>(blockIdx.x) * BOX_WORDS;
    if (band > 0) mail_above = mail - BOX_WORDS;
    if (band + 1 < bands) mail_below = mail + BOX_WORDS;
  }

  // From one lane's mouth, so that the compiler knows that a warp's lanes agree: where it doubts that, it guards every
  // shuffle and schedules no instruction across it.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  if (warp >= SCANNERS / 32) {
    // --- copy: one group of copies per tile, empty past the end -----------------------------------------------------
    const int thread = static_cast<int>(threadIdx.x) - SCANNERS;
    Copier copier(thread);
    struct Place {  // of a tile among those of this block
      int unit, tile;
      __device__ __forceinline__ void go_on(int tiles, int unit_step) {
        if (++tile == tiles) {
          tile = 0;
          unit += unit_step;
        }
      }
    };
    Place loaded{first_unit, 0}, stored = loaded, asked = loaded;
    const auto left = [&](int tile) {  // lines, LINES at most
      return static_cast<int>(min(scan.lines - static_cast<long long>(tile) * LINES, static_cast<long long>(LINES)));
    };
    // One round a tile, and STAGES - 1 before the first, of which the scanning warps meet the last one only. The code of a copy
    // is long, so each stands here once.
    const int total = (rows.units - first_unit + unit_step - 1) / unit_step * tiles;
#pragma unroll 1
    for (int count = 1 - STAGES; count <= total; ++count) {
      if (ALONG && count > 0) {
        rows.unit = stored.unit;
        if (!MERGING && stored.tile == 0) copier.aim_back(rows, geometry);
        copier.store(ring, count - 1, h, merge, rows, geometry, stored.tile, left(stored.tile));
        stored.go_on(tiles, unit_step);
        if (OVER_BOTH) __syncwarp();
      }
      if (count == total) break;
      if (loaded.unit < rows.units) {
        rows.unit = loaded.unit;
        if (loaded.tile == 0) copier.aim(rows, geometry);
        copier.load(stage_of(ring, count + STAGES - 1), x, weight, lam, merge, rows, geometry, loaded.tile,
                    left(loaded.tile));
        loaded.go_on(tiles, unit_step);
      }
      copy_async_commit();
      if (ALONG && MERGING && count >= 0) {
        rows.unit = asked.unit;
        if (asked.tile == 0) copier.aim_back(rows, geometry);
        copier.ask(merge, rows, geometry, asked.tile, left(asked.tile));
        asked.go_on(tiles, unit_step);
      }
      if (count < -1) continue;
      copy_async_wait<STAGES - 2>();
      block_sync();
    }
  } else {
    // --- scan -------------------------------------------------------------------------------------------------------
    Scanner scanner;
    scanner.lane = threadIdx.x % 32;
    scanner.set = warp % SETS;
    scanner.warp = warp / SETS;
    scanner.row0 = scanner.warp * WARP_STEP + scanner.lane * ROWS;
    const int lane = scanner.lane;
    scanner.mine =
        (scanner.warp == 0 || lane >= INNER / ROWS) && (scanner.warp == WARPS - 1 || lane < 32 - INNER / ROWS);
    scanner.gives = scanner.mine && (lane < 2 * INNER / ROWS || lane >= 32 - 2 * INNER / ROWS);
    auto& state = scanner.state;
    const int row0 = scanner.row0, set = scanner.set;
    if (WARPS > 1) scanner.edges = kept(edges + set * BLOCK_ROWS + row0);

    // Where this lane's rows are a neighbour's halo, the neighbour's box 0; and its own box 0, where they are of its halo.
    const int from_top = row0 - OUTER, from_bottom = OUTER + band_rows - ROWS - row0;  // rows to the band's ends
    Word *give_above = nullptr, *give_below = nullptr;
    if (OUTER && mail_above && from_top >= 0 && from_top < OUTER) {
      give_above = mail_above + BOXES * BOX_STEP + set * OUTER + from_top;
    }
    if (OUTER && mail_below && from_bottom >= 0 && from_bottom < OUTER) {
      give_below = mail_below + set * OUTER + OUTER - ROWS - from_bottom;
    }
    const Word* take = nullptr;
    if (OUTER && bands > 1 && (row0 < OUTER || row0 >= OUTER + band_rows)) {
      take = mail + set * OUTER + (row0 < OUTER ? row0 : BOXES * BOX_STEP + row0 - OUTER - band_rows);
    }
    const long long first_restart = scan.first_restart(ADJOINT, h0 != nullptr);
    const int whole_parts = static_cast<int>(scan.lines / SUB), parts = static_cast<int>((scan.lines + SUB - 1) / SUB);
    // From one lane's mouth, too, which alone knows it, as far as the compiler can tell: what a kernel was given is otherwise fetched
    // anew wherever it is used.
    const Offset step = __shfl_sync(0xffffffffu, static_cast<Offset>(lane == 0 ? geometry.h.line : 0), 0);
    unsigned exchanges = 0;
    int box = 0;  // of this exchange, in words from box 0
    scanner.start(ring);
    block_sync();
    for (int unit = first_unit; unit < rows.units; unit += unit_step) {
      rows.unit = unit;
      scanner.exists = rows.exists(row0);
      const int row = rows.row_of(row0);
      scanner.exist = RAGGED ? min(ROWS, rows.width - row) : ROWS;
      scanner.has_above = scanner.exists && row > 0;
      scanner.has_below = scanner.exists && row + ROWS < rows.width;
      scanner.keeps = rows.owns(row0) && scanner.mine;
      const int channel = rows.channel(row0) + set, b = channel / channels, c = channel % channels;
      RESULT* to = h;
      if (!ALONG && scanner.keeps) to += geometry.h.slice(b, c) + row * geometry.h.cross;
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const bool exists = scanner.exists && r < scanner.exist;
        state[r] = h0 && exists ? h0[geometry.first.at(b, c, row + r)] : State(0);
      }
      const bool gives_above = give_above && scanner.keeps, gives_below = give_below && scanner.keeps;
      const bool takes = take && scanner.exists;
      long long restart = first_restart;  // the next line without a previous one
      int whole_until = static_cast<int>(min(restart / SUB, static_cast<long long>(whole_parts)));

      scanner.prepare(0);
      int part = 0;  // of SUB lines, of this unit, scanned so far
      for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll 1
        for (int first = 0; first < LINES; first += SUB, to += SUB * step) {
          if (part < whole_until) {
            scanner.scan<true>(first, to, step, merge, SUB, 0, 0);
          } else if (part < parts) {
            const long long start = static_cast<long long>(part) * SUB, most = SUB;
            const int left = static_cast<int>(min(scan.lines - start, most));
            scanner.scan<false>(first, to, step, merge, left, static_cast<int>(min(restart - start, most)),
                                static_cast<int>(min(scan.chunk, most)));
            while (restart < start + SUB) restart += scan.chunk;
            whole_until = static_cast<int>(min(restart / SUB, static_cast<long long>(whole_parts)));
          }

          // --- hand the edges to the neighbours' halos: give, meet, take --------------------------------------------
          // Each branch costs as much as a third of a line, so what need not be asked is not.
          ++part;
          const bool goes_on = part < parts, tile_ends = first + SUB == LINES;
          const bool inner = WARPS > 1 && (INNER == SUB || (goes_on && part % (INNER ? INNER / SUB : 1) == 0));
          const auto exchange = [&](bool next) {
            if (inner) scanner.give_inner();
            if (tile_ends) {
              block_sync();
              scanner.go_on(ring);
            }
            if (next) scanner.prepare(tile_ends ? 0 : first + SUB);
            if (inner && !tile_ends) group_sync(1 + set, 32 * WARPS);  // warps that hand no edges on need not meet
            if (inner) scanner.take_inner();
          };
          if (OUTER && goes_on && part % (OUTER ? OUTER / SUB : 1) == 0) {
            ++exchanges;
            box = box == (BOXES - 1) * BOX_STEP ? 0 : box + BOX_STEP;
            Word *const above = give_above + box, *const below = give_below + box;
            Word words[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
              publish(gives_above, above + r, sealed(state[r], exchanges));
              publish(gives_below, below + r, sealed(state[r], exchanges));
            }
            exchange(true);
            await_tags(takes, take + box, exchanges, words);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) state[r] = takes ? opened(words[r]) : state[r];
          } else {
            exchange(goes_on);
          }
        }
      }
      if (h_last && scanner.keeps) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
          if (r < scanner.exist) h_last[geometry.last.at(b, c, row + r)] = state[r];
        }
      }
    }
  }
  if (CLUSTER > 1) cluster_sync();  // nobody leaves while a neighbour may still write to its shared memory
}
