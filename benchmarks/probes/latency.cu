// Latency probes: clocks per scan step, for every way of handing a row's value to its neighbour (shuffle, block barrier,
// cluster barrier, tagged words in L2 or in a neighbour's shared memory), idle or beside `traffic`; who is resident.
#include "common.cuh"

// Stream 4 reads : 1 write until control[1] is set or `limit` clocks have passed. report: bytes moved, clocks, stopped.
extern "C" __global__ void __launch_bounds__(512, 2)
    traffic(const float4* in, float4* out, long long n, u32* control, u64* report, long long limit) {
  if (threadIdx.x == 0) atomicAdd(control, 1);
  const long long start = clock64();
  long long at = blockIdx.x * 4096LL + threadIdx.x, rounds = 0;
  u32 stop = 0;
  while (!stop && clock64() - start < limit) {
    stop = load_word(control + 1);
    float4 v[8];
#pragma unroll
    for (int u = 0; u < 8; ++u) v[u] = load_vector<0>(in + at + 512 * u);
#pragma unroll
    for (int u = 0; u < 8; u += 4) __stcs(out + at + 512 * u, v[u] + v[u + 1] + v[u + 2] + v[u + 3]);
    at = at + gridDim.x * 4096LL;
    if (at + 4096 > n) at = blockIdx.x * 4096LL + threadIdx.x;
    ++rounds;
  }
  if (threadIdx.x == 0) {
    report[3 * blockIdx.x] = rounds * 512 * 10 * 16;
    report[3 * blockIdx.x + 1] = clock64() - start;
    report[3 * blockIdx.x + 2] = stop;
  }
}

extern "C" __global__ void set_word(u32* word, u32 value) {
  *word = value;
}

extern "C" __global__ void clock_rate(u64* out, long long nanoseconds) {
  const u64 t = global_nanoseconds(), c = clock64();
  while (global_nanoseconds() - t < nanoseconds && clock64() - c < 100000000) {
  }
  out[0] = clock64() - c;
  out[1] = global_nanoseconds() - t;
}

// Steps in registers and shuffles. VARIANT 0: selects, shuffled value first; 1: tuned chain; 2: tuned, and every operand
// from shared memory by 16-byte loads one group of 4 steps ahead, the result back by 16-byte stores.
template <int RL, int VARIANT>
__global__ void step_latency(u64* clocks, float* sink, int steps, const u32* control, u32 expected) {
  constexpr int kGroups = 2, kPitch = 16 * (kGroups + 1);
  __shared__ __align__(16) char tile[VARIANT == 2 ? (kStreams + 1) * RL * 32 * kPitch : 16];
  const int lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(tile) / 4); i += blockDim.x)
    reinterpret_cast<float*>(tile)[i] = 0.3f;
  float h[RL], x[RL], lambda[RL], wl[RL], wm[RL], wr[RL];
#pragma unroll
  for (int r = 0; r < RL; ++r) {  // run-time values, so that nothing folds
    h[r] = x[r] = static_cast<float>(lane + r) * 0.01f;
    lambda[r] = 1.0f - 1e-6f * steps / (steps + r + 1);
    wl[r] = lane + r == 0 ? 0.0f : 0.31f * lambda[r];
    wr[r] = lane == 31 && r == RL - 1 ? 0.0f : 0.32f * lambda[r];
    wm[r] = 0.3f * lambda[r];
  }
  await_traffic(control, expected);
  const long long start = clock64();
  if constexpr (VARIANT < 2) {
#pragma unroll 8
    for (int s = 0; s < steps; ++s) {
#pragma unroll
      for (int r = 0; r < RL; ++r) x[r] *= lambda[r];
      step<RL, VARIANT == 1>(h, x, wl, wm, wr);
    }
  } else {
    const auto at = [&](int stream, int r, int group) {
      return reinterpret_cast<float4*>(tile + ((stream * RL + r) * 32 + lane) * kPitch + group * 16);
    };
    float4 next[kStreams][RL];
    const auto load = [&](int group) {
#pragma unroll
      for (int i = 0; i < kStreams; ++i)
#pragma unroll
        for (int r = 0; r < RL; ++r) next[i][r] = load_shared(at(i, r, group));
    };
    load(0);
    for (int s = 0; s < steps; s += 4) {
      float4 now[kStreams][RL], y[RL];
#pragma unroll
      for (int i = 0; i < kStreams; ++i)
#pragma unroll
        for (int r = 0; r < RL; ++r) now[i][r] = next[i][r];
      load(s / 4 % kGroups);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float b[RL], l[RL], m[RL], n[RL];
#pragma unroll
        for (int r = 0; r < RL; ++r) {
          b[r] = (&now[0][r].x)[j] * (&now[1][r].x)[j];
          l[r] = lane + r == 0 ? 0.0f : (&now[2][r].x)[j];
          m[r] = (&now[3][r].x)[j];
          n[r] = lane == 31 && r == RL - 1 ? 0.0f : (&now[4][r].x)[j];
        }
        step<RL, true>(h, b, l, m, n);
#pragma unroll
        for (int r = 0; r < RL; ++r) (&y[r].x)[j] = h[r];
      }
#pragma unroll
      for (int r = 0; r < RL; ++r) *at(kStreams, r, s / 4 % kGroups) = y[r];
    }
  }
  const long long end = clock64();
#pragma unroll
  for (int r = 0; r < RL; ++r) keep(h[r] + x[r], sink);
  if (lane == 0) clocks[(blockIdx.x * blockDim.x + threadIdx.x) / 32] = end - start;
}

// A slice wider than a warp: every step ends in a barrier of the block (CS = 1) or of the cluster. SHUFFLE: only the
// warps' edge rows go through shared memory; otherwise the whole line does (CS = 1 only).
template <int CS, bool SHUFFLE>
__global__ void __cluster_dims__(CS, 1, 1)
    barrier_steps(u64* clocks, float* sink, int steps, const u32* control, u32 expected) {
  constexpr int kLine = SHUFFLE ? 34 : 1026;
  __shared__ float line[2][SHUFFLE ? 2 : 1][kLine];  // SHUFFLE: first and last row of every warp, at index warp + 1
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const u32 rank = CS > 1 ? cluster_rank() : 0;
  for (int i = threadIdx.x; i < static_cast<int>(sizeof(line) / 4); i += blockDim.x) (&line[0][0][0])[i] = 0;
  const bool to_left = CS > 1 && threadIdx.x == 0 && rank > 0;
  const bool to_right = CS > 1 && threadIdx.x == blockDim.x - 1 && rank + 1 < CS;
  float* far[2] = {};
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    if (to_left) far[p] = remote(&line[p][0][SHUFFLE ? warps + 1 : 0], rank - 1);
    if (to_right) far[p] = remote(&line[p][SHUFFLE ? 1 : 0][0], rank + 1);
  }
  const float wl = lane == 0 ? 0.0f : 0.31f, wr = lane == 31 ? 0.0f : 0.32f;
  const float edge_weight = lane == 0 ? 0.31f : lane == 31 ? 0.32f : 0.0f;
  float h = lane * 0.01f, x = 0.5f, lambda = 1.0f - 1e-9f * steps;
  await_traffic(control, expected);
  if constexpr (CS > 1) cluster_barrier();
  const long long start = clock64();
  for (int s = 0; s < steps; ++s) {
    float (&now)[SHUFFLE ? 2 : 1][kLine] = line[s % 2];
    x *= lambda;
    if constexpr (SHUFFLE) {
      if (lane == 0) now[0][warp + 1] = h;
      if (lane == 31) now[1][warp + 1] = h;
      if (to_left || to_right) *(s % 2 ? far[1] : far[0]) = h;
      const float before = __shfl_up_sync(kFull, h, 1), after = __shfl_down_sync(kFull, h, 1);
      h = fmaf(wr, after, fmaf(wl, before, fmaf(0.3f, h, x)));
      if constexpr (CS > 1)
        cluster_barrier();
      else
        __syncthreads();
      h = fmaf(edge_weight, lane == 31 ? now[0][warp + 2] : now[1][warp], h);
    } else {
      now[0][threadIdx.x + 1] = h;
      __syncthreads();
      h = fmaf(0.31f, now[0][threadIdx.x], fmaf(0.32f, now[0][threadIdx.x + 2], fmaf(0.3f, h, x)));
    }
  }
  const long long end = clock64();
  if constexpr (CS > 1) cluster_barrier();
  keep(h, sink);
  if (lane == 0) clocks[(blockIdx.x * blockDim.x + threadIdx.x) / 32] = end - start;
}

// One warp per block = one band of 32 RL rows, K halo rows on each side, refreshed every K steps by tagged words
// {value, epoch}: through L2 (CS = 1, `bands` bands per slice) or into the neighbour's shared memory (a cluster per slice).
// Two slots suffice: a neighbour publishes exchange e + 2 only after it consumed our e + 1, which followed our use of e.
template <int RL, int CS>
__global__ void __cluster_dims__(CS, 1, 1) halo_steps(u64* clocks, float* sink, int exchanges, int K, int bands,
                                                      u64* mailbox, u32 epoch, const u32* control, u32 expected) {
  __shared__ u64 near_box[2][2][32];  // slot, side, row
  const int lane = threadIdx.x, band = blockIdx.x % bands, halo = K / RL, tail = lane - (32 - halo);
  const bool reads_left = lane < halo && band > 0, reads_right = tail >= 0 && band + 1 < bands;
  const bool sends_left = lane >= halo && lane < 2 * halo && band > 0;
  const bool sends_right = tail < 0 && tail >= -halo && band + 1 < bands;
  const int side = reads_right ? 1 : 0, row = (side ? tail : lane) * RL;  // where this lane reads
  const int to = sends_left ? 1 : 0, to_row = (sends_left ? lane - halo : tail + halo) * RL;
  const int neighbour = blockIdx.x + (sends_left ? -1 : 1);
  for (int i = lane; i < 128; i += 32) (&near_box[0][0][0])[i] = 0;
  float h[RL], x[RL], wl[RL], wm[RL], wr[RL];
#pragma unroll
  for (int r = 0; r < RL; ++r) {
    h[r] = x[r] = static_cast<float>(lane + r) * 0.01f;
    wl[r] = lane + r == 0 ? 0.0f : 0.31f;
    wr[r] = lane == 31 && r == RL - 1 ? 0.0f : 0.32f;
    wm[r] = 0.3f;
  }
  const float lambda = 1.0f - 1e-9f * exchanges;
  u64* far_box = nullptr;
  if (CS > 1 && (sends_left || sends_right))
    far_box = remote(&near_box[0][to][to_row], blockIdx.x % CS + (sends_left ? -1 : 1));
  await_traffic(control, expected);
  if constexpr (CS > 1) cluster_barrier();
  bool all = true;
  const long long start = clock64();
  for (int e = 0; e < exchanges && all; ++e) {
    const int slot = e % 2;
    if (sends_left || sends_right) {
#pragma unroll
      for (int r = 0; r < RL; ++r) {
        const u64 word = tagged(h[r], epoch + e);
        if constexpr (CS > 1)
          store_remote(far_box + slot * 64 + r, word);
        else
          store_l2(mailbox + ((neighbour * 2 + slot) * 2 + to) * 32 + to_row + r, word);
      }
    }
    bool fresh = true;
    if (reads_left || reads_right) {
      int tries = CS > 1 ? kNearTries : kTries;
      const u64* from = CS > 1 ? &near_box[slot][side][row] : mailbox + ((blockIdx.x * 2 + slot) * 2 + side) * 32 + row;
      do {
        fresh = true;
        u64 word[RL];
#pragma unroll
        for (int r = 0; r < RL; ++r) word[r] = CS > 1 ? load_near(from + r) : load_l2(from + r);
#pragma unroll
        for (int r = 0; r < RL; ++r) {
          fresh = fresh && u32(word[r] >> 32) == epoch + e;
          h[r] = __uint_as_float(static_cast<u32>(word[r]));
        }
      } while (!fresh && --tries > 0);
    }
    __syncwarp();
    all = __all_sync(kFull, fresh);
#pragma unroll 4
    for (int s = 0; s < K; ++s) {
#pragma unroll
      for (int r = 0; r < RL; ++r) x[r] *= lambda;
      step<RL, true>(h, x, wl, wm, wr);
    }
  }
  const long long end = clock64();
  if constexpr (CS > 1) cluster_barrier();
#pragma unroll
  for (int r = 0; r < RL; ++r) keep(h[r], sink);
  if (lane == 0) clocks[blockIdx.x] = all ? end - start : 0;
}

// Round trips between two blocks, `words` lanes a message. VIA 0: tagged words in L2, blocks b and b + pairs; 1: tagged
// words in the shared memory of a cluster of 2; 2: st.async completing an mbarrier there. report: clocks, multiprocessor.
template <int VIA>
__global__ void __cluster_dims__(VIA ? 2 : 1, 1, 1)
    ping_pong(u64* report, u64* mailbox, int rounds, int words, u32 epoch, const u32* control, u32 expected) {
  __shared__ u64 inbox[32], arrived;
  const int lane = threadIdx.x, pairs = gridDim.x / 2;
  const u32 me = VIA ? cluster_rank() : blockIdx.x / pairs, pair = VIA ? blockIdx.x / 2 : blockIdx.x % pairs;
  const bool active = lane < words;
  inbox[lane] = 0;
  if (VIA == 2 && lane == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&arrived)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  await_traffic(control, expected);
  u64* far = nullptr;
  if constexpr (VIA > 0) {
    far = remote(inbox + lane, me ^ 1);
    cluster_barrier();
  }
  const u32 far_inbox = VIA == 2 ? remote_shared_address(inbox + lane, me ^ 1) : 0;
  const u32 far_arrived = VIA == 2 ? remote_shared_address(&arrived, me ^ 1) : 0;
  u64* own_box = mailbox + (pair * 2 + me) * 32 + lane;
  u64* far_box = mailbox + (pair * 2 + (me ^ 1)) * 32 + lane;
  bool all = true;
  const long long start = clock64();
  for (int e = 0; e < 2 * rounds && all; ++e) {
    const u64 word = tagged(1.0f, epoch + e);
    if (e % 2 == static_cast<int>(me)) {
      if (active) {
        if constexpr (VIA == 0) store_l2(far_box, word);
        if constexpr (VIA == 1) store_remote(far, word);
        if constexpr (VIA == 2)
          asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(far_inbox),
                       "l"(word), "r"(far_arrived)
                       : "memory");
      }
    } else {
      u32 done = !active;
      int tries = VIA ? kNearTries : kTries;
      if constexpr (VIA < 2) {
        while (!done && --tries > 0) done = (VIA ? load_near(inbox + lane) : load_l2(own_box)) == word;
      } else {
        if (lane == 0)
          asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&arrived)),
                       "r"(words * 8)
                       : "memory");
        for (done = 0; !done && --tries > 0;)
          asm volatile(
              "{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
              : "=r"(done)
              : "r"(shared_address(&arrived)), "r"(e / 2 % 2)
              : "memory");
        done = done && (!active || load_near(inbox + lane) == word);
      }
      __syncwarp();
      all = __all_sync(kFull, done);
    }
  }
  const long long end = clock64();
  if constexpr (VIA > 0) cluster_barrier();
  if (lane == 0) {
    report[2 * blockIdx.x] = all ? end - start : 0;
    report[2 * blockIdx.x + 1] = multiprocessor();
  }
}

template <int CS, bool ORDERED>
__global__ void __cluster_dims__(CS, 1, 1) cluster_barriers(u64* clocks, int rounds) {
  cluster_barrier();
  const long long start = clock64();
  for (int i = 0; i < rounds; ++i) cluster_barrier<ORDERED>();
  clocks[blockIdx.x] = (clock64() - start) / rounds;
}

// Stay for a while: blocks whose intervals overlap were resident together. report: start, end, multiprocessor.
__device__ __forceinline__ void stay(u64* report, long long nanoseconds) {
  const u64 start = global_nanoseconds(), c = clock64();
  while (global_nanoseconds() - start < nanoseconds && clock64() - c < 100000000) {
  }
  if (threadIdx.x == 0) {
    report[3 * blockIdx.x] = start;
    report[3 * blockIdx.x + 1] = global_nanoseconds();
    report[3 * blockIdx.x + 2] = multiprocessor();
  }
}
extern "C" __global__ void residency(u64* report, long long nanoseconds) {
  stay(report, nanoseconds);
}
template <int CS>
__global__ void __cluster_dims__(CS, 1, 1) cluster_residency(u64* report, long long nanoseconds) {
  stay(report, nanoseconds);
}

// ---- Arguments, for the host's cost of a launch

struct Geometry {
  long long v[18];
};
#define POINTERS float *a, float *b, float *c, float *d, float *e, float *f, u64 *out
extern "C" __global__ void arguments_7(POINTERS) {}
extern "C" __global__ void arguments_struct(POINTERS, Geometry g) {
  if (out != nullptr && threadIdx.x < 18) out[threadIdx.x] = g.v[threadIdx.x];
}
extern "C" __global__ void arguments_25(POINTERS, long long g0, long long g1, long long g2, long long g3, long long g4,
                                        long long g5, long long g6, long long g7, long long g8, long long g9,
                                        long long g10, long long g11, long long g12, long long g13, long long g14,
                                        long long g15, long long g16, long long g17) {
  if (out != nullptr) out[0] = g0 + g17;
}
