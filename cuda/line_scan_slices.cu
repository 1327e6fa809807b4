// One direction of the line scan for small images, whose slices lie in shared memory as a whole:
//
//     h[t,i] = w0[t,i]·h[t-1,i-1] + w1[t,i]·h[t-1,i] + w2[t,i]·h[t-1,i+1] + λ[t,i]·x[t,i],    h[-1] = h0 or 0
//
// A warp brings neighbouring slices of x and λ, which are one run of memory, into shared memory by asynchronous copies, scans
// them side by side, a lane to ROWS rows of CHANNELS slices, leaves h there and writes it out as one run again.
//
//   STAGES = 1: a warp does that once. What hides the waits is that a multiprocessor holds many blocks.
//   STAGES = 2: it does so in several rounds, and brings the slices of the next one while it scans.
//
//   SHARED = 0: every channel has its own weights; a warp brings those of its slices and never meets another warp.
//   SHARED = 1: the block's channels share their weights, which come once for all its warps.
//
// Lanes read GROUP lines of a row at once where these are contiguous (horizontal scans), as many as divide a row, up to 16 bytes
// of x; otherwise line by line, and all ROWS at once where those are. Rows of an odd number of such pieces touch all banks;
// where a piece is a whole vector of 16 bytes, vectors change places, in another way from period to period, so that eight
// lanes, of eight rows, do so at any length.
// Bytes moved: x, λ, h once, three weights once per pixel and channel (SHARED: per block).
// MERGING = 1: h is merged into a sum on its way out (merge_term.cuh) and is not written itself.
// ADJOINT = 1: the same for g[t] = dh[t] + A[t+1]ᵀ·g[t+1], its mirror image (scan_lane.cuh), with dh for x and g for h.
// Specialised by SCALAR (x, λ), WEIGHT, RESULT (h, sum), STATE, ADJOINT, MERGING, HAS_U, ALONG, REVERSED, HAS_LAM, ROWS, RAGGED (the last lane has
// fewer), CHANNELS, SHARED, GROUP, STAGES. What follows from sizes and addresses alone comes with the launch: geometry.runs.
#include "geometry.cuh"
#include "merge_term.cuh"
#include "primitives.cuh"
#include "scan_lane.cuh"

using namespace gspn2;

namespace {

using Hidden = Choice<MERGING, State, RESULT>::Type;         // what h is until it is merged: unrounded
constexpr bool IN_PLACE = sizeof(Hidden) == sizeof(SCALAR);  // h takes the place of x
constexpr int ACROSS = !ALONG && !RAGGED ? ROWS : 1;         // rows that a lane reads at once
constexpr int MOST_THREADS = 256;                            // of a block
constexpr int PACK = GROUP * ACROSS;
constexpr int PACKS = ROWS / ACROSS;
// What a lane reads at once and computes from it, in registers. If they allow, it reads before it has computed the last; and
// where they are few, the compiler is asked for two of the largest blocks, or it would spill to make room for more.
constexpr int READ = PACK * PACKS * (3 * sizeof(WEIGHT) + CHANNELS * (1 + HAS_LAM) * sizeof(SCALAR)) / 4;
constexpr int MADE = PACK * PACKS * CHANNELS * sizeof(Hidden) / 4;
constexpr bool AHEAD = READ <= 40;
constexpr int BLOCKS = READ + MADE <= 40 ? 2 : 1;
constexpr bool SWIZZLED = GROUP > 1 && GROUP * sizeof(SCALAR) == 16;
static_assert(GROUP == 1 || ACROSS == 1, "what is read at once is contiguous");

// A run of elements in shared memory, its parts of 16 bytes swizzled.
template <typename T>
struct Run {
  char* bytes;
  unsigned turn;  // 2^32 over the vectors of a period, rounded up: a run is far too short for that to matter

  __device__ __forceinline__ int swizzle(int offset) const {
    return SWIZZLED ? static_cast<int>(__umulhi(offset / 16, turn) % 8 * 16) : 0;
  }
  template <typename Piece>
  __device__ __forceinline__ Piece& at(int element) const {
    const int offset = element * static_cast<int>(sizeof(T));
    return *reinterpret_cast<Piece*>(bytes + (offset ^ swizzle(offset)));
  }
  // The same `within` a row that starts at element `row`. A period has whole rows, if they are of x's size.
  template <typename Piece>
  __device__ __forceinline__ Piece& at(int row, int within) const {
    if (sizeof(T) != sizeof(SCALAR)) return at<Piece>(row + within);
    const int start = row * static_cast<int>(sizeof(T)), offset = start + within * static_cast<int>(sizeof(T));
    return *reinterpret_cast<Piece*>(bytes + (offset ^ swizzle(start)));
  }

  // Neighbouring elements, which start at a multiple of Count.
  template <int Count>
  __device__ __forceinline__ Pack<T, Count> read(int row, int within) const {
    constexpr int PART = Count * sizeof(T) > 16 ? 16 / sizeof(T) : Count;
    Pack<T, Count> result;
#pragma unroll
    for (int k = 0; k < Count; k += PART) {
      reinterpret_cast<Pack<T, PART>&>(result.value[k]) = at<Pack<T, PART>>(row, within + k);
    }
    return result;
  }
  template <int Count>
  __device__ __forceinline__ void write(bool wanted, int row, int within, const Pack<T, Count>& pack) const {
    constexpr int PART = Count * sizeof(T) > 16 ? 16 / sizeof(T) : Count;
#pragma unroll
    for (int k = 0; k < Count; k += PART) {
      write_shared(wanted, &at<Pack<T, PART>>(row, within + k), reinterpret_cast<const Pack<T, PART>&>(pack.value[k]));
    }
  }

  // Start to bring `count` elements, `bytes` at a time as far as they go; threads share the work. Only the usual way is unrolled:
  // a block lives for microseconds, of which it spends some on fetching its instructions.
  __device__ __forceinline__ void bring(const T* from, int count, int bytes, int thread, int threads) const {
    for_size(bytes, [&](auto size) {
      constexpr int STEP = size.value / sizeof(T);
      if constexpr (size.value >= 4) {
#pragma unroll(size.value == 16 ? 4 : 1)
        for (int k = thread * STEP; k + STEP <= count; k += threads * STEP) copy_async<size.value>(&at<T>(k), from + k);
      }
#pragma unroll 1
      for (int k = (size.value >= 4 ? count / STEP * STEP : 0) + thread; k < count; k += threads) at<T>(k) = from[k];
    });
  }
  __device__ __forceinline__ void take_out(T* to, int count, int bytes, int thread, int threads) const {
    for_size(bytes, [&](auto size) {
      constexpr int STEP = size.value / sizeof(T);
      using Piece = Pack<T, STEP>;
#pragma unroll(size.value == 16 ? 4 : 1)
      for (int k = thread * STEP; k + STEP <= count; k += threads * STEP) {
        *reinterpret_cast<Piece*>(to + k) = at<Piece>(k);
      }
#pragma unroll 1
      for (int k = count / STEP * STEP + thread; k < count; k += threads) to[k] = at<T>(k);
    });
  }
  // The same, merged with what lies at the same places from `first` on in its array, from `first_u` on in u's.
  template <typename Sum>
  __device__ __forceinline__ void merge_out(Sum* sum, const Merge& merge, long long first_u, long long first, int count,
                                            int bytes, int thread, int threads) const {
    for_size(bytes, [&](auto size) {
      constexpr int STEP = size.value / sizeof(T), AT_ONCE = size.value == 16 ? 4 : 1;
      const auto merge_some = [&](auto pack, auto at_once, int k, int end) {
        constexpr int PACK_OF = pack.value, TIMES = at_once.value;
        Addends<PACK_OF> addends[TIMES];
#pragma unroll
        for (int j = 0; j < TIMES; ++j) {
          const int at = k + j * threads * PACK_OF;
          if (at < end) addends[j].read(merge, first_u + at, first + at);
        }
#pragma unroll
        for (int j = 0; j < TIMES; ++j) {
          const int place = k + j * threads * PACK_OF;
          if (place >= end) continue;
          write_pack(sum + first + place, addends[j].template add<Sum>(merge, at<Pack<T, PACK_OF>>(place)));
        }
      };
      const int whole = count / STEP * STEP;
#pragma unroll 1
      for (int k = thread * STEP; k < whole; k += AT_ONCE * threads * STEP) {
        merge_some(Size<STEP>(), Size<AT_ONCE>(), k, whole);
      }
      for (int k = whole + thread; k < count; k += threads) merge_some(Size<1>(), Size<1>(), k, count);
    });
  }

 private:
  template <int Value>
  struct Size {
    static constexpr int value = Value;
  };
  // Do it by 16, 8 or 4 bytes at a time, or by elements.
  template <typename Work>
  static __device__ __forceinline__ void for_size(int bytes, Work work) {
    constexpr int ELEMENT = sizeof(T);
    if (bytes == 16) return work(Size<16>());
    if constexpr (ELEMENT < 8) {
      if (bytes == 8) return work(Size<8>());
    }
    if constexpr (ELEMENT < 4) {
      if (bytes == 4) return work(Size<4>());
    }
    work(Size<ELEMENT>());
  }
};

// Regions of shared memory start at multiples of 128 bytes, within which vectors change places.
template <typename T>
__device__ __forceinline__ int region_bytes(int elements) {
  return (elements * static_cast<int>(sizeof(T)) + 127) / 128 * 128;
}
template <typename T>
__device__ __forceinline__ Run<T> region(char*& shared, int elements, unsigned turn) {
  const Run<T> run{shared, turn};
  shared += region_bytes<T>(elements);
  return run;
}

// Where a slice's lowest address is: scans that run backwards count from their last line.
template <typename Array>
__device__ __forceinline__ long long lowest(const Array& array, long long slice, const Scan& scan) {
  return slice + (REVERSED ? (scan.lines - 1) * array.line : 0);
}

// The slices of a warp in shared memory.
struct Stage {
  Run<WEIGHT> taps;
  Run<SCALAR> x, lam;
  Run<Hidden> h;
};

// What a lane scans: ROWS rows of CHANNELS slices. Instead of rows and slices that do not exist it reads some that do: where a
// read depends on something, the compiler takes packs apart into their elements.
struct Lane {
  int pixel, tap;         // where its first row begins, by address, in x and in the weights
  int row[PACKS];         // from there to the rows that it reads at once
  int channel[CHANNELS];  // and to the slices
  int line, area;         // from line to line, and from one of the three weights to the next
  int exist, channels;    // rows and channels that there are
  bool has_above, has_below;
};

// The lines that a lane reads at once.
struct Lines {
  Pack<WEIGHT, PACK> taps[3][PACKS];
  Pack<SCALAR, PACK> x[CHANNELS][PACKS], lam[HAS_LAM ? CHANNELS : 1][PACKS];

  // `line`: the one at the lowest address.
  __device__ __forceinline__ void read(const Stage& stage, const Lane& lane, int line) {
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
      const int within = line * lane.line;
#pragma unroll
      for (int k = 0; k < 3; ++k) taps[k][p] = stage.taps.read<PACK>(lane.tap + k * lane.area + lane.row[p], within);
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) {
        x[c][p] = stage.x.read<PACK>(lane.pixel + lane.channel[c] + lane.row[p], within);
        if (HAS_LAM) lam[c][p] = stage.lam.read<PACK>(lane.pixel + lane.channel[c] + lane.row[p], within);
      }
    }
  }

  // Scan one of them, counted by address.
  __device__ __forceinline__ void advance(const Lane& lane, State (&state)[CHANNELS][ROWS],
                                          Pack<Hidden, PACK> (&result)[CHANNELS][PACKS], int k, bool restarts) const {
    State weights[3][ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) weights[tap][r] = taps[tap][r / ACROSS].widened(k + r % ACROSS);
    }
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
      State line[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        line[r] = x[c][r / ACROSS].widened(k + r % ACROSS);
        if (HAS_LAM) line[r] = multiply(line[r], lam[c][r / ACROSS].widened(k + r % ACROSS));
      }
      scan_line<ADJOINT, RAGGED>(state[c], weights, line, restarts, lane.has_above, lane.has_below, lane.exist);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) result[c][r / ACROSS].value[k + r % ACROSS] = narrow<Hidden>(line[r]);
    }
  }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(MOST_THREADS, BLOCKS)
    line_scan_slices(const SCALAR* x,       // [B, C, T, I]; adjoint: dh
                     const WEIGHT* weight,  // [B, G, 3, T, I]
                     const SCALAR* lam,     // [B, C, T, I] or null: 1
                     const State* h0,       // [B, C, I] or null: no previous line; adjoint: dh_last or null
                     RESULT* h,             // [B, C, T, I]; adjoint: g; merging: the sum
                     State* h_last,         // [B, C, I] or null; adjoint: dh0 or null
#if MERGING
                     const State* before,  // [B, C, T, I] or null: 0; with h's strides
                     const SCALAR* u,      // [B, C, T, I]; only if HAS_U
                     const SCALAR* m,      // [1] or null: 1
#endif
                     const Geometry geometry) {
#if MERGING
  const Merge merge(u, before, m);
#endif
  const Scan& scan = geometry.scan;
  const int lines = static_cast<int>(scan.lines), width = static_cast<int>(scan.width), area = lines * width;
  // From one lane's mouth, so that the compiler knows that a warp's lanes agree.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), thread = threadIdx.x % 32;
  const int warps = static_cast<int>(blockDim.x) / 32;

  // Channels of one family may share a block: those of an image, or of a group. `units` of them are a warp's in a round.
  const int units = static_cast<int>(geometry.bands.units), blocks = static_cast<int>(geometry.bands.count);
  const int rounds = STAGES == 1 ? 1 : static_cast<int>(geometry.runs.rounds);
  const int family_size = static_cast<int>(SHARED ? scan.channels_per_group : scan.channels);
  const int families = static_cast<int>(scan.channels) / family_size;  // in an image
  const int family = static_cast<int>(blockIdx.x) / blocks, b = family / families;
  const int first_channel = family % families * family_size;
  const auto first_slice = [&](int round) {  // of the family
    return ((static_cast<int>(blockIdx.x) % blocks * rounds + round) * warps + warp) * units;
  };

  const unsigned turn = static_cast<unsigned>(geometry.runs.turn);
  char* shared = dynamic_shared<char>();
  const Run<WEIGHT> shared_taps = SHARED ? region<WEIGHT>(shared, 3 * area, turn) : Run<WEIGHT>{shared, turn};
  const int stage_bytes = (SHARED ? 0 : region_bytes<WEIGHT>(3 * units * area)) +
                          (HAS_LAM ? 2 : 1) * region_bytes<SCALAR>(units * area) +
                          (IN_PLACE ? 0 : region_bytes<Hidden>(units * area));
  const auto stage_of = [&](int round) {
    char* at = shared + (warp * STAGES + round % STAGES) * stage_bytes;
    Stage stage;
    stage.taps = SHARED ? shared_taps : region<WEIGHT>(at, 3 * units * area, turn);
    stage.x = region<SCALAR>(at, units * area, turn);
    stage.lam = HAS_LAM ? region<SCALAR>(at, units * area, turn) : stage.x;
    stage.h = IN_PLACE ? Run<Hidden>{stage.x.bytes, turn} : region<Hidden>(at, units * area, turn);
    return stage;
  };

  const int by = static_cast<int>(geometry.runs.images), taps_by = static_cast<int>(geometry.runs.taps);
  const auto bring = [&](int round) {  // a group of copies, which may be empty
    const int slices = min(units, family_size - first_slice(round)), c0 = first_channel + first_slice(round);
    if (round < rounds && slices > 0) {
      const Stage stage = stage_of(round);
      if (!SHARED) {
        const WEIGHT* from = weight + lowest(geometry.weight, geometry.weight.slice(b, c0), scan);
        stage.taps.bring(from, 3 * slices * area, taps_by, thread, 32);
      }
      stage.x.bring(x + lowest(geometry.x, geometry.x.slice(b, c0), scan), slices * area, by, thread, 32);
      if (HAS_LAM) {
        stage.lam.bring(lam + lowest(geometry.lam, geometry.lam.slice(b, c0), scan), slices * area, by, thread, 32);
      }
    }
    copy_async_commit();
  };
  if (SHARED) {
    const WEIGHT* from = weight + lowest(geometry.weight, geometry.weight.slice(b, family % families), scan);
    shared_taps.bring(from, 3 * area, taps_by, threadIdx.x, blockDim.x);
  }
  bring(0);
  if (STAGES > 1) bring(1);

  const int lanes = (width + ROWS - 1) / ROWS, slice = thread / lanes * CHANNELS, row0 = thread % lanes * ROWS;
  const int cross = ALONG ? lines : 1;
  Lane lane;
  lane.line = ALONG ? 1 : width;
  lane.area = area;
  lane.exist = min(ROWS, width - row0);
  lane.has_above = row0 > 0;
  lane.has_below = row0 + ROWS < width;
#pragma unroll
  for (int p = 0; p < PACKS; ++p) lane.row[p] = (RAGGED ? min(p, lane.exist - 1) : p) * ACROSS * cross;

  if (SHARED) {
    copy_async_wait<STAGES - 1>();
    block_sync();
  }
  const int of_warp =
      (max(0, family_size - first_slice(0)) + warps * units - 1) / (warps * units);  // rounds with slices
  for (int round = 0; round < min(rounds, of_warp); ++round) {
    const int slices = min(units, family_size - first_slice(round)), c0 = first_channel + first_slice(round);
    const Stage stage = stage_of(round);
    const bool scans = slice < slices;  // the others read what the first slice's lanes do, and write nothing
    lane.pixel = (scans ? slice : 0) * area + row0 * cross;
    lane.tap = (scans && !SHARED ? 3 * slice : 0) * area + row0 * cross;
    lane.channels = scans ? min(CHANNELS, slices - slice) : 0;
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) lane.channel[c] = c < lane.channels ? c * area : 0;
    const auto exists = [&](int c, int r) { return c < lane.channels && r < lane.exist; };
    State state[CHANNELS][ROWS];
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        state[c][r] = h0 && exists(c, r) ? h0[geometry.first.at(b, c0 + slice + c, row0 + r)] : State(0);
      }
    }
    copy_async_wait<STAGES - 1>();
    __syncwarp();

    const int chunk = static_cast<int>(scan.chunk);
    int restart = static_cast<int>(scan.first_restart(ADJOINT, h0 != nullptr));  // the next line without a previous one
    const auto lowest_of = [&](int t) { return REVERSED ? lines - GROUP - t : t; };
    Lines now;
    if (AHEAD) now.read(stage, lane, lowest_of(0));
    const auto scan_group = [&](int t, auto restarts) {
      Lines next;  // on its way while this one is computed
      if (AHEAD) next.read(stage, lane, lowest_of(min(t + GROUP, lines - GROUP)));
      if (!AHEAD) now.read(stage, lane, lowest_of(t));
      __syncwarp();  // h goes where a lane without a slice of its own has read x
      Pack<Hidden, PACK> result[CHANNELS][PACKS];
#pragma unroll
      for (int m = 0; m < GROUP; ++m) {
        const int k = REVERSED ? GROUP - 1 - m : m;
        now.advance(lane, state, result, k, restarts(t + m));
      }
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) {
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
          const int row = lane.pixel + lane.channel[c] + lane.row[p];
          stage.h.write<PACK>(exists(c, p * ACROSS), row, lowest_of(t) * lane.line, result[c][p]);
        }
      }
      if (AHEAD) now = next;
    };
    for (int t = 0; t < lines; t += GROUP) {
#pragma unroll 2
      for (; t + GROUP <= min(restart, lines); t += GROUP) scan_group(t, [](int) { return false; });
      if (t >= lines) break;
      scan_group(t, [&](int line) {
        const bool restarts = line == restart;
        if (restarts) restart += chunk;
        return restarts;
      });
    }
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        if (h_last && exists(c, r)) h_last[geometry.last.at(b, c0 + slice + c, row0 + r)] = state[c][r];
      }
    }

    // --- take out ---------------------------------------------------------------------------------------------------
    __syncwarp();
    const long long to = lowest(geometry.h, geometry.h.slice(b, c0), scan);
#if MERGING
    const long long u_at = lowest(geometry.u, geometry.u.slice(b, c0), scan);
    stage.h.merge_out(h, merge, u_at, to, slices * area, by, thread, 32);
#else
    stage.h.take_out(h + to, slices * area, by, thread, 32);
#endif
    if (STAGES > 1) {
      __syncwarp();
      bring(round + 2);
    }
  }
}
