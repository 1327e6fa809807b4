// What device code compiled for the host may ask of the emulator's runtime. The headers in device/ wrap these functions
// in CUDA's names; kernels never call them directly.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulator {

struct Index {
  unsigned x, y, z;
};

// Constant within one CUDA thread, so the compiler may keep the answers.
[[gnu::const]] Index thread_index();
[[gnu::const]] Index block_index();
[[gnu::const]] Index block_shape();
[[gnu::const]] Index grid_shape();
[[gnu::const]] void* dynamic_shared_memory();

// Where in the source a thread waits: for reports, and because threads must meet at the same line.
struct Site {
  const char* file;
  int line;
};

// Block-wide barrier. Returns how many threads came with a true predicate.
enum class Barrier { plain, count, any_of, all_of };
int block_barrier(Barrier kind, bool predicate, Site site);

// A barrier of `threads` threads of the block, always the same ones for a number.
constexpr int kGroups = 16;
void group_barrier(int number, int threads, Site site);

// The lanes named by mask meet; `bits` and `argument` are this lane's contribution. Only `sync` orders memory.
enum class Meeting { sync, shuffle, shuffle_up, shuffle_down, shuffle_xor, ballot, any_of, all_of };
uint64_t warp_meeting(Meeting kind, unsigned mask, uint64_t bits, int argument, int width, Site site);

// Announces an atomic access; the caller performs it right after, and nothing runs in between.
enum class Atomic { load, store, update };
void atomic_access(const void* address, size_t bytes, Atomic how);

// Asynchronous copies of one thread from global to shared memory.
void copy_async(void* shared, const void* global, size_t bytes, size_t valid_bytes, Site site);
void copy_async_commit();
void copy_async_wait(int groups_left);

// Words that blocks of a cooperative launch exchange.
void publish(unsigned long long* slot, unsigned long long value);
unsigned long long await_tag(const unsigned long long* slot, unsigned tag, Site site);

// Clusters: the place in another block's dynamic shared memory that corresponds to one in this block's, and a barrier.
void* cluster_address(void* shared, int rank, Site site);
void cluster_barrier(Site site);

[[noreturn]] void trap(Site site);

}  // namespace emulator

// The caller's file and line as trailing default arguments, so that device code writes plain CUDA.
#define EMULATOR_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
