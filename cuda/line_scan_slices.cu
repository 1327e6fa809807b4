// One direction of the line scan for small images, whose slices lie in shared memory as a whole:
//
//     h[t,i] = w0[t,i]·h[t-1,i-1] + w1[t,i]·h[t-1,i] + w2[t,i]·h[t-1,i+1] + λ[t,i]·x[t,i],    h[-1] = h0 or 0
//
// A warp brings neighbouring slices of x and λ, which are one run of memory, into shared memory by asynchronous copies, scans
// them side by side, a lane to ROWS rows of CHANNELS slices, leaves h there and writes it out as one run again. Nothing in it
// is ahead of anything: what hides the waits is that a multiprocessor holds many blocks.
//
//   SHARED = 0: every channel has its own weights; a warp brings those of its slices and never meets another warp.
//   SHARED = 1: the block's channels share their weights, which come once for all its warps.
//
// GROUP = 1: lanes read their rows line by line, at any size and alignment; across contiguous rows (vertical scans) all ROWS at
// once. GROUP > 1: lanes read that many lines of a row at once (horizontal scans of rows of whole vectors of 16 bytes). Vectors
// then change places, in another way from period to period, so that eight lanes, of eight rows, touch all banks.
// Bytes moved: x, λ, h once, three weights once per pixel and channel (SHARED: per block).
// Specialised by SCALAR (x, λ), WEIGHT, RESULT (h), STATE, ALONG, REVERSED, HAS_LAM, ROWS, RAGGED (the last lane has fewer),
// CHANNELS, WARPS, SHARED, GROUP. What follows from sizes and addresses alone comes with the launch: geometry.runs.
#include "geometry.cuh"
#include "primitives.cuh"
#include "scan_lane.cuh"

using namespace gspn2;

namespace {

constexpr bool IN_PLACE = sizeof(RESULT) == sizeof(SCALAR);  // h takes the place of x
constexpr int ACROSS = !ALONG && !RAGGED ? ROWS : 1;         // rows that a lane reads at once
constexpr int PACK = GROUP * ACROSS;
constexpr int PACKS = ROWS / ACROSS;
static_assert(GROUP == 1 || ACROSS == 1, "what is read at once is contiguous");

// A run of elements in shared memory, its parts of 16 bytes swizzled.
template <typename T>
struct Run {
  char* bytes;
  unsigned turn;  // 2^32 over the vectors of a period, rounded up: a run is far too short for that to matter

  __device__ __forceinline__ int place(int offset) const {
    return GROUP > 1 ? offset ^ __umulhi(offset / 16, turn) % 8 * 16 : offset;
  }
  template <typename Piece>
  __device__ __forceinline__ Piece& at(int element) const {
    return *reinterpret_cast<Piece*>(bytes + place(element * static_cast<int>(sizeof(T))));
  }

  // Neighbouring elements, which start at a multiple of Count.
  template <int Count>
  __device__ __forceinline__ Pack<T, Count> read(int element) const {
    constexpr int PART = Count * sizeof(T) > 16 ? 16 / sizeof(T) : Count;
    Pack<T, Count> result;
#pragma unroll
    for (int k = 0; k < Count; k += PART) {
      reinterpret_cast<Pack<T, PART>&>(result.value[k]) = at<Pack<T, PART>>(element + k);
    }
    return result;
  }
  template <int Count>
  __device__ __forceinline__ void write(int element, const Pack<T, Count>& pack) const {
    constexpr int PART = Count * sizeof(T) > 16 ? 16 / sizeof(T) : Count;
#pragma unroll
    for (int k = 0; k < Count; k += PART) {
      at<Pack<T, PART>>(element + k) = reinterpret_cast<const Pack<T, PART>&>(pack.value[k]);
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

 private:
  template <int Bytes>
  struct Size {
    static constexpr int value = Bytes;
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

// What a lane scans: ROWS rows of CHANNELS slices.
struct Lane {
  Run<WEIGHT> taps;
  Run<SCALAR> x, lam;
  int pixel, tap;       // where its first row begins, by address, in x and in the weights
  int line, cross;      // steps from line to line and from row to row
  int area;             // from slice to slice, and from one of the three weights to the next
  int exist, channels;  // rows and channels that there are
  bool has_above, has_below;
};

// The lines that a lane reads at once.
struct Lines {
  Pack<WEIGHT, PACK> taps[3][PACKS];
  Pack<SCALAR, PACK> x[CHANNELS][PACKS], lam[HAS_LAM ? CHANNELS : 1][PACKS];

  // `line`: the one at the lowest address. Rows and channels that do not exist keep what they have.
  __device__ __forceinline__ void read(const Lane& lane, int line) {
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
      if (p * ACROSS >= lane.exist) continue;
      const int at = line * lane.line + p * ACROSS * lane.cross;
#pragma unroll
      for (int k = 0; k < 3; ++k) taps[k][p] = lane.taps.read<PACK>(lane.tap + k * lane.area + at);
#pragma unroll
      for (int c = 0; c < CHANNELS; ++c) {
        if (c >= lane.channels) continue;
        x[c][p] = lane.x.read<PACK>(lane.pixel + c * lane.area + at);
        if (HAS_LAM) lam[c][p] = lane.lam.read<PACK>(lane.pixel + c * lane.area + at);
      }
    }
  }

  // Scan one of them, counted by address.
  __device__ __forceinline__ void advance(const Lane& lane, State (&state)[CHANNELS][ROWS], int k,
                                          bool restarts) const {
    State weights[3][ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) weights[tap][r] = taps[tap][r / ACROSS].widened(k + r % ACROSS);
    }
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
      State signal[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        signal[r] = x[c][r / ACROSS].widened(k + r % ACROSS);
        if (HAS_LAM) signal[r] *= lam[c][r / ACROSS].widened(k + r % ACROSS);
      }
      scan_line<RAGGED != 0>(state[c], weights, signal, restarts, lane.has_above, lane.has_below, lane.exist);
    }
  }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * WARPS)
    line_scan_slices(const SCALAR* x,       // [B, C, T, I]
                     const WEIGHT* weight,  // [B, G, 3, T, I]
                     const SCALAR* lam,     // [B, C, T, I] or null: 1
                     const State* h0,       // [B, C, I] or null: no previous line
                     RESULT* h,             // [B, C, T, I]
                     State* h_last,         // [B, C, I] or null
                     const Geometry geometry) {
  const Scan& scan = geometry.scan;
  const int lines = static_cast<int>(scan.lines), width = static_cast<int>(scan.width), area = lines * width;
  // From one lane's mouth, so that the compiler knows that a warp's lanes agree.
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), thread = threadIdx.x % 32;

  // Channels of one family may share a block: those of an image, or of a group. `units` of them are a warp's.
  const int units = static_cast<int>(geometry.bands.units), blocks = static_cast<int>(geometry.bands.count);
  const int family_size = static_cast<int>(SHARED ? scan.channels_per_group : scan.channels);
  const int families = static_cast<int>(scan.channels) / family_size;  // in an image
  const int family = static_cast<int>(blockIdx.x) / blocks, b = family / families;
  const int within = (static_cast<int>(blockIdx.x) % blocks * WARPS + warp) * units;
  const int c0 = family % families * family_size + within;
  const int slices = max(0, min(units, family_size - within));

  char* shared = dynamic_shared<char>();
  const int per_warp = (SHARED ? 0 : region_bytes<WEIGHT>(3 * units * area)) +
                       (HAS_LAM ? 2 : 1) * region_bytes<SCALAR>(units * area) +
                       (IN_PLACE ? 0 : region_bytes<RESULT>(units * area));
  const unsigned turn = static_cast<unsigned>(geometry.runs.turn);
  Lane lane;
  if (SHARED) lane.taps = region<WEIGHT>(shared, 3 * area, turn);
  shared += warp * per_warp;
  if (!SHARED) lane.taps = region<WEIGHT>(shared, 3 * units * area, turn);
  lane.x = region<SCALAR>(shared, units * area, turn);
  lane.lam = HAS_LAM ? region<SCALAR>(shared, units * area, turn) : lane.x;
  const Run<RESULT> out = IN_PLACE ? Run<RESULT>{lane.x.bytes, turn} : region<RESULT>(shared, units * area, turn);

  // --- bring --------------------------------------------------------------------------------------------------------
  const int by = static_cast<int>(geometry.runs.images), taps_by = static_cast<int>(geometry.runs.taps);
  if (SHARED) {
    const WEIGHT* from = weight + lowest(geometry.weight, geometry.weight.slice(b, family % families), scan);
    lane.taps.bring(from, 3 * area, taps_by, threadIdx.x, 32 * WARPS);
  } else if (slices > 0) {
    const WEIGHT* from = weight + lowest(geometry.weight, geometry.weight.slice(b, c0), scan);
    lane.taps.bring(from, 3 * slices * area, taps_by, thread, 32);
  }
  if (slices > 0) {
    lane.x.bring(x + lowest(geometry.x, geometry.x.slice(b, c0), scan), slices * area, by, thread, 32);
    if (HAS_LAM) {
      lane.lam.bring(lam + lowest(geometry.lam, geometry.lam.slice(b, c0), scan), slices * area, by, thread, 32);
    }
  }
  copy_async_commit();

  const int lanes = (width + ROWS - 1) / ROWS, slice = thread / lanes * CHANNELS, row0 = thread % lanes * ROWS;
  const bool scans = slice < slices;
  lane.line = ALONG ? 1 : width;
  lane.cross = ALONG ? lines : 1;
  lane.area = area;
  lane.pixel = scans ? slice * area + row0 * lane.cross : 0;
  lane.tap = scans ? (SHARED ? 0 : 3 * slice * area) + row0 * lane.cross : 0;
  lane.exist = scans ? min(ROWS, width - row0) : 0;
  lane.channels = min(CHANNELS, slices - slice);
  lane.has_above = row0 > 0;
  lane.has_below = row0 + ROWS < width;
  const auto exists = [&](int c, int r) { return c < lane.channels && r < lane.exist; };
  State state[CHANNELS][ROWS];
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      state[c][r] = h0 && exists(c, r) ? h0[geometry.first.at(b, c0 + slice + c, row0 + r)] : State(0);
    }
  }
  copy_async_wait<0>();
  if (SHARED) {
    block_sync();
  } else {
    __syncwarp();
  }
  if (slices == 0) return;

  // --- scan ---------------------------------------------------------------------------------------------------------
  const int chunk = static_cast<int>(scan.chunk);
  int restart = h0 ? chunk : 0;  // the next line without a previous one
  Lines now = {};
  now.read(lane, REVERSED ? lines - GROUP : 0);
  for (int t = 0; t < lines; t += GROUP) {
    const int lowest_line = REVERSED ? lines - GROUP - t : t;
    Lines next = now;  // on its way while this one is computed
    if (t + GROUP < lines) next.read(lane, REVERSED ? lowest_line - GROUP : lowest_line + GROUP);
    Pack<RESULT, PACK> result[CHANNELS][PACKS];
    const auto scan_group = [&](auto restarts) {
#pragma unroll
      for (int m = 0; m < GROUP; ++m) {
        const int k = REVERSED ? GROUP - 1 - m : m;
        now.advance(lane, state, k, restarts(t + m));
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
#pragma unroll
          for (int r = 0; r < ROWS; ++r) {
            result[c][r / ACROSS].value[k + r % ACROSS] = narrow<RESULT>(state[c][r]);
          }
        }
      }
    };
    if (restart >= t + GROUP) {
      scan_group([](int) { return false; });
    } else {
      scan_group([&](int line) {
        const bool restarts = line == restart;
        if (restarts) restart += chunk;
        return restarts;
      });
    }
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
#pragma unroll
      for (int p = 0; p < PACKS; ++p) {
        const int at = lane.pixel + c * area + lowest_line * lane.line + p * ACROSS * lane.cross;
        if (exists(c, p * ACROSS)) out.write<PACK>(at, result[c][p]);
      }
    }
    now = next;
  }
#pragma unroll
  for (int c = 0; c < CHANNELS; ++c) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      if (h_last && exists(c, r)) h_last[geometry.last.at(b, c0 + slice + c, row0 + r)] = state[c][r];
    }
  }

  // --- take out -----------------------------------------------------------------------------------------------------
  __syncwarp();
  out.take_out(h + lowest(geometry.h, geometry.h.slice(b, c0), scan), slices * area, by, thread, 32);
}
