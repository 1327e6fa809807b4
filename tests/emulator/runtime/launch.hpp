// The launch in progress: what Python asked for, its blocks and threads, and how a fault ends it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fiber.hpp"
#include "interface.hpp"

namespace emulator {

// ---- What Python passes (mirrored by ctypes structures in _launcher.py) ----------------------------------------------

// Memory of one or more arguments, inside the arena. One state byte per byte of memory, see memory.hpp.
struct RegionRequest {
  uint64_t offset;
  uint64_t bytes;
  uint64_t granule;  // bytes that one shadow cell stands for
  uint8_t* state;
  const char* label;
};

enum class Schedule : int32_t { thread, reverse, random, priority };
enum class CopyTime : int32_t { wait, issue, random };

struct Request {
  uint32_t grid[3];
  uint32_t block[3];
  uint64_t dynamic_shared_bytes;
  uint64_t seed;
  double preempt;  // chance that a thread is suspended before a memory access
  int32_t cooperative;
  int32_t cluster;  // blocks of a cluster, neighbours in x
  int32_t detect;
  Schedule schedule;
  CopyTime copy_time;
  void (*entry)(void**);  // unpacks the arguments and calls the kernel
  void** arguments;
  const RegionRequest* regions;
  uint64_t region_count;
};

// ---- State ----------------------------------------------------------------------------------------------------------

struct Block;

struct PendingCopy {
  char* shared;
  const char* global;
  uint32_t bytes;
  uint32_t valid_bytes;
  int group;  // number of the commit that closed it, or of the one to come
  bool moved;
  Site site;
  const void* code;
};

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  Index coordinates{};
  uint16_t index = 0;
  bool exited = false;

  const char* waits_for = nullptr;
  Site site{};

  // What this lane brought to a warp meeting, and what it takes away.
  Meeting meeting{};
  unsigned mask = 0;
  uint64_t bits = 0;
  int argument = 0;
  int width = 0;

  // Happens-before: own time, own time at the last block barrier, and what is known of each lane of the warp.
  uint32_t clock = 0;
  uint32_t clock_at_barrier = 0;
  uint32_t clock_at_cluster_barrier = 0;
  uint32_t clock_at_group_barrier[kGroups] = {};  // 0: not a member
  uint32_t known[32] = {};

  std::vector<PendingCopy> copies;
  int open_group = 0;

  unsigned lane() const { return index % 32; }
  unsigned warp() const { return index / 32; }
};

struct Block {
  Index coordinates{};
  uint32_t number = 0;  // in the grid
  std::vector<Thread> threads;
  std::vector<uint64_t> warp_priority;
  unsigned alive = 0;

  Barrier barrier{};
  Site barrier_site{};
  unsigned arrived = 0;
  int predicates = 0;
  int barrier_result = 0;

  struct Group {
    int threads = 0;  // that meet
    std::vector<Thread*> waiting;
    std::vector<Thread*> members;  // as they met the first time
  };
  Group groups[kGroups];

  char* dynamic_shared = nullptr;
  std::vector<char> static_shared;  // while a thread of another block runs

  bool has(unsigned index) const { return index < threads.size(); }
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 0x1234567u) {}
  uint64_t operator()() {  // splitmix64
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

// The loaded shared library that holds the kernel.
struct Module {
  uintptr_t base = 0;
  std::vector<std::pair<uintptr_t, uintptr_t>> segments;
  char* static_shared = nullptr;
  size_t static_shared_bytes = 0;
};

struct Launch {
  explicit Launch(const Request& asked);
  const Request& request;
  Random random;           // decisions of the emulated program's environment
  Random schedule_random;  // who runs next
  uint64_t preempt_below;  // of 2^32
  Module module;
  std::vector<Block> blocks;  // those that run together: one, a cluster, or the whole grid of a cooperative launch
  unsigned arrived_in_cluster = 0;
  Block* resident = nullptr;  // whose static shared memory is in place
  Thread* current = nullptr;
  Fiber main;
  std::string fault;      // empty: none so far
  std::string suspicion;  // a fault that a race found later would explain
};

extern Launch* launch;

inline Thread& self() {
  return *launch->current;
}

// ---- Scheduler ------------------------------------------------------------------------------------------------------

void run_blocks();                       // starts all threads of launch->blocks and runs them to the end
void make_ready(Thread& thread);         // it may run again
void wait(const char* what, Site site);  // suspends the current thread until make_ready
void preempt();                          // suspends it, still ready

// ---- Faults ---------------------------------------------------------------------------------------------------------

// Ends the launch: the first fault wins. `kind` becomes the Python exception's class.
[[noreturn]] void fail(const char* kind, const std::string& text);
void note_fault(const char* kind, const std::string& text);  // without leaving the current thread

// The launch goes on: if it was read too early, the write that comes too late is a race, which names both threads.
void suspect(const char* kind, const std::string& text);

std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));
std::string name_of(const Thread& thread);  // "thread (3,0,0) of block (0,0,0)"
std::string name_of(Site site);
std::string name_of_code(const void* address);  // "<code 1a2b>", which Python turns into file and line

}  // namespace emulator
