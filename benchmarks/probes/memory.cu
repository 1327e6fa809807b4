// Bandwidth probes: the bytes of the forward scan (5 streams read, 1 written), plain, along rows and along columns, with
// or without its arithmetic; reads that hit L2.
#include "common.cuh"

extern "C" __global__ void fill(float* out, long long count) {  // uniform in [0, 1/3): three weights sum to less than 1
  for (long long i = blockIdx.x * 256LL + threadIdx.x; i < count; i += gridDim.x * 256LL) {
    u32 v = u32(i) * 2654435761u + u32(i >> 32);
    v = (v ^ v >> 15) * 2246822519u;
    out[i] = float((v ^ v >> 13) >> 8) * (1.0f / (3 << 24));
  }
}

// READS streams of n vectors each, read and added, one written; CS marks both as streaming.
template <int READS, int UNROLL, bool CS>
__global__ void mix(const float4* in, float4* out, long long n) {
  const long long first = blockIdx.x * (256LL * UNROLL) + threadIdx.x;
  float4 v[UNROLL][READS];
#pragma unroll
  for (int u = 0; u < UNROLL; ++u)
#pragma unroll
    for (int r = 0; r < READS; ++r) v[u][r] = CS ? __ldcs(in + r * n + first + 256 * u) : in[r * n + first + 256 * u];
#pragma unroll
  for (int u = 0; u < UNROLL; ++u) {
    float4 sum = v[u][0];
#pragma unroll
    for (int r = 1; r < READS; ++r) sum = sum + v[u][r];
    sum = make_float4(sum.x / READS, sum.y / READS, sum.z / READS, sum.w / READS);  // repeated runs stay finite
    if (CS)
      __stcs(out + first + 256 * u, sum);
    else
      out[first + 256 * u] = sum;
  }
}

// A horizontal scan: thread = row, TKB bytes of every row and stream per stage, ring of DEPTH stages, in-place result.
// MODE 0 only moves bytes, 1 passes all of them through lane = row accesses, 2 scans (32-row slices, RL = 1).
template <int TKB, int DEPTH, int MODE, int PREFETCH>
__global__ void rows(const char* in, char* out, long long stream_bytes, long long pitch) {
  extern __shared__ __align__(16) char ring[];
  constexpr int kPitch = TKB + 16, kPerRow = TKB / 16;
  const int count = blockDim.x, stride = count / kPerRow, column = threadIdx.x % kPerRow, row = threadIdx.x / kPerRow;
  const int stream_stage = count * kPitch, stage_bytes = kStreams * stream_stage;
  const int own = row * kPitch + column * 16, lane = threadIdx.x % 32;
  const long long origin = (blockIdx.x * static_cast<long long>(count) + row) * pitch + column * 16;
  const int stages = static_cast<int>(pitch / TKB);
  const auto load = [&](int s) {
    if (s < stages) {
      const u32 to = shared_address(ring + s % DEPTH * stage_bytes + own);
      const char* from = in + origin + s * TKB;
#pragma unroll
      for (int stream = 0; stream < kStreams; ++stream)
#pragma unroll
        for (int k = 0; k < kPerRow; ++k)
          copy_async<PREFETCH>(to + stream * stream_stage + k * stride * kPitch,
                               from + stream * stream_bytes + k * stride * pitch);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  float h[1] = {0};
  const float left = lane == 0 ? 0.0f : 1.0f, right = lane == 31 ? 0.0f : 1.0f;
  for (int s = 0; s < DEPTH - 1; ++s) load(s);
  for (int s = 0; s < stages; ++s) {
    asm volatile("cp.async.wait_group %0;" ::"n"(DEPTH - 2) : "memory");
    __syncthreads();  // the stage is there for all, and nobody still reads the one loaded next
    load(s + DEPTH - 1);
    char* stage = ring + s % DEPTH * stage_bytes;
    if constexpr (MODE > 0) {
#pragma unroll
      for (int q = 0; q < kPerRow; ++q) {
        float4* at = reinterpret_cast<float4*>(stage + threadIdx.x * kPitch + q * 16);
        float4 v[kStreams];
#pragma unroll
        for (int i = 0; i < kStreams; ++i)
          v[i] = *reinterpret_cast<float4*>(reinterpret_cast<char*>(at) + i * stream_stage);
        if constexpr (MODE == 1)
          *at = v[0] + v[1] + v[2] + v[3] + v[4];
        else {
          float* x = &v[0].x;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const float b[1] = {x[j] * (&v[1].x)[j]}, wl[1] = {(&v[2].x)[j] * left}, wm[1] = {(&v[3].x)[j]};
            const float wr[1] = {(&v[4].x)[j] * right};
            step<1, true>(h, b, wl, wm, wr);
            x[j] = h[0];
          }
          *at = v[0];
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int k = 0; k < kPerRow; ++k) {
      const char* at = stage + own + k * stride * kPitch;
      float4 v = *reinterpret_cast<const float4*>(at);
      if constexpr (MODE == 0)
#pragma unroll
        for (int i = 1; i < kStreams; ++i) v = v + *reinterpret_cast<const float4*>(at + i * stream_stage);
      *reinterpret_cast<float4*>(out + origin + k * stride * pitch + s * TKB) = v;
    }
  }
}

// The same by the tensor engine: one thread asks for a box of TKB bytes of every row of a stream at a time, which arrives
// without padding. STORE: the engine also takes the first stream out again, and nobody else touches anything; otherwise
// threads add the streams up and write the sum, as `rows` does.
template <int TKB, int DEPTH, bool STORE>
__global__ void boxes(const __grid_constant__ TensorMap in, const __grid_constant__ TensorMap result, char* out,
                      long long pitch) {
  extern __shared__ __align__(1024) char ring[];
  __shared__ __align__(8) u64 arrived[DEPTH];
  constexpr int kPerRow = TKB / 16;
  const int count = blockDim.x, stride = count / kPerRow, column = threadIdx.x % kPerRow, row = threadIdx.x / kPerRow;
  const int stream_stage = count * TKB, stage_bytes = kStreams * stream_stage;
  const int own = row * TKB + column * 16, first_row = blockIdx.x * count;
  const long long origin = (first_row + row) * pitch + column * 16;
  const int stages = static_cast<int>(pitch / TKB);
  const auto load = [&](int s) {
    if (threadIdx.x != 0 || s >= stages) return;
    expect_bytes(arrived + s % DEPTH, stage_bytes);
#pragma unroll
    for (int stream = 0; stream < kStreams; ++stream)
      load_box(ring + s % DEPTH * stage_bytes + stream * stream_stage, in, s * (TKB / 4), first_row, stream,
               arrived + s % DEPTH);
  };
  if (threadIdx.x == 0)
    for (int k = 0; k < DEPTH; ++k) start_barrier(arrived + k);
  __syncthreads();
  for (int s = 0; s < DEPTH - 1; ++s) load(s);
  for (int s = 0; s < stages; ++s) {
    if (STORE && threadIdx.x != 0) break;
    await_bytes(arrived + s % DEPTH, s / DEPTH % 2);
    char* stage = ring + s % DEPTH * stage_bytes;
    if constexpr (STORE) {
      store_box(result, stage, s * (TKB / 4), first_row);
      asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");  // the stage that is loaded next has left
      load(s + DEPTH - 1);
    } else {
      __syncthreads();  // nobody still reads the stage that is loaded next
      load(s + DEPTH - 1);
#pragma unroll
      for (int k = 0; k < kPerRow; ++k) {
        const char* at = stage + own + k * stride * TKB;
        float4 v = *reinterpret_cast<const float4*>(at);
#pragma unroll
        for (int i = 1; i < kStreams; ++i) v = v + *reinterpret_cast<const float4*>(at + i * stream_stage);
        *reinterpret_cast<float4*>(out + origin + k * stride * pitch + s * TKB) = v;
      }
    }
  }
  if (STORE) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

template <int VEC>
struct alignas(4 * VEC) Vector {
  float v[VEC];
};

// A vertical scan of planes of lines x width: thread = VEC columns, PF lines ahead in registers. `share` planes (channels)
// use the same weights; their blocks are adjacent when channels_adjacent. SCAN: warps are slices of their own.
template <int VEC, int PF, bool SCAN>
__global__ void columns(const float* __restrict__ in, float* __restrict__ out, long long stream, int width, int lines,
                        int share, int channels_adjacent) {
  const int bands = width / (VEC * static_cast<int>(blockDim.x));
  int band = blockIdx.x % bands, plane = blockIdx.x / bands;
  if (channels_adjacent) {
    plane = blockIdx.x / (share * bands) * share + blockIdx.x % share;
    band = blockIdx.x / share % bands;
  }
  const long long size = static_cast<long long>(width) * lines, column = (band * blockDim.x + threadIdx.x) * VEC;
  const float* own = in + plane * size + column;
  const float* weights = in + 2 * stream + plane / share * size + column;
  float* result = out + plane * size + column;
  const float left = threadIdx.x % 32 == 0 ? 0.0f : 1.0f, right = threadIdx.x % 32 == 31 ? 0.0f : 1.0f;
  Vector<VEC> ahead[PF][kStreams];
  const auto load = [&](Vector<VEC>(&to)[kStreams], int line) {
    const long long at = static_cast<long long>(line) * width;
#pragma unroll
    for (int i = 0; i < kStreams; ++i)
      to[i] = *reinterpret_cast<const Vector<VEC>*>(i < 2 ? own + i * stream + at : weights + (i - 2) * stream + at);
  };
#pragma unroll
  for (int p = 0; p < PF; ++p) load(ahead[p], p);
  float h[VEC] = {};
  for (int first = 0; first < lines; first += PF) {
#pragma unroll
    for (int p = 0; p < PF; ++p) {
      Vector<VEC> now[kStreams];
#pragma unroll
      for (int i = 0; i < kStreams; ++i) now[i] = ahead[p][i];
      if (first + p + PF < lines) load(ahead[p], first + p + PF);
      Vector<VEC> y;
      if constexpr (SCAN) {
        now[2].v[0] *= left;
        now[4].v[VEC - 1] *= right;
#pragma unroll
        for (int j = 0; j < VEC; ++j) now[0].v[j] *= now[1].v[j];
        step<VEC, true>(h, now[0].v, now[2].v, now[3].v, now[4].v);
#pragma unroll
        for (int j = 0; j < VEC; ++j) y.v[j] = h[j];
      } else {
#pragma unroll
        for (int j = 0; j < VEC; ++j) y.v[j] = now[0].v[j] + now[1].v[j] + now[2].v[j] + now[3].v[j] + now[4].v[j];
      }
      *reinterpret_cast<Vector<VEC>*>(result + static_cast<long long>(first + p) * width) = y;
    }
  }
}

// Read n vectors (a multiple of 1024) `passes` times, past L1, forward or from the end.
template <int KEEP>
__global__ void read_pass(const float4* in, long long n, int passes, int reverse, float* sink) {
  const int chunks = static_cast<int>(n / 1024), total = chunks * passes;
  float4 sum = make_float4(0, 0, 0, 0);
  for (int k = blockIdx.x; k < total; k += gridDim.x) {
    const int chunk = reverse ? chunks - 1 - k % chunks : k % chunks;
    const float4* from = in + chunk * 1024LL + threadIdx.x;
    float4 v[4];
#pragma unroll
    for (int u = 0; u < 4; ++u) v[u] = load_vector<KEEP>(from + 256 * u);
    sum = sum + v[0] + v[1] + v[2] + v[3];
  }
  keep(sum.x + sum.y + sum.z + sum.w, sink);
}
