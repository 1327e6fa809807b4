// Decides whether an access is allowed: bounds, alignment, initialised bytes, and a happens-before race check.
//
// Only barriers order memory. A block barrier orders everything before it with everything after it, for the block; a
// cluster barrier does so for the cluster, a group's for its members, and __syncwarp for the lanes of its mask. Shuffles, votes, atomics, fences
// and published words order nothing. So "a's access happened before b" needs no full vector clocks: a's time at the last
// barrier of its block and of its cluster and, within a warp, what b has learnt of a's lane are enough.

#include "detector.hpp"

namespace emulator {
namespace {

bool happened_before(const Access& access, const Thread& thread) {
  if (access.block != thread.block->number) {
    const unsigned cluster = launch->request.cluster;
    if (access.block / cluster != thread.block->number / cluster) return false;
    return access.clock <= launch->blocks[access.block % cluster].threads[access.thread].clock_at_cluster_barrier;
  }
  if (access.thread == thread.index) return true;
  const Thread& other = thread.block->threads[access.thread];
  if (access.clock <= other.clock_at_barrier) return true;
  for (int group = 1; group < kGroups; ++group) {
    if (thread.clock_at_group_barrier[group] && access.clock <= other.clock_at_group_barrier[group]) return true;
  }
  return other.warp() == thread.warp() && access.clock <= thread.known[other.lane()];
}

// How far apart two threads are: the farther, the fewer barriers can order both before a later writer.
int distance(const Access& a, const Access& b) {
  return a.block != b.block ? 3 : a.thread / 32 != b.thread / 32 ? 2 : a.thread != b.thread;
}

std::string name_of(const Access& access) {
  const Request& request = launch->request;
  const uint32_t *g = request.grid, *b = request.block;
  return format("thread (%u,%u,%u) of block (%u,%u,%u)", access.thread % b[0], access.thread / b[0] % b[1],
                access.thread / b[0] / b[1], access.block % g[0], access.block / g[0] % g[1],
                access.block / g[0] / g[1]);
}

const void* code_of(const Access& access) {
  return reinterpret_cast<const void*>(launch->module.base + access.code);
}

struct Check {
  Thread& thread;
  Region& region;
  const char* address;
  size_t bytes;
  Use use;
  const void* code;

  std::string describe() const {
    return format("%s %s%s %zu bytes at byte %td of %s, %s", emulator::name_of(thread).c_str(),
                  use.atomic ? "atomically "
                  : use.copy ? "asynchronously "
                             : "",
                  use.write ? "writes" : "reads", bytes, address - region.begin, region.label.c_str(),
                  name_of_code(code).c_str());
  }

  void check_bytes() const {
    const size_t first = address - region.begin;
    if (address < region.begin || first + bytes > region.bytes) fail("bounds", "outside its memory\n  " + describe());
    uint8_t* const state = region.state + first;
    uint8_t all = 0xff, any = 0;
    for (size_t i = 0; i < bytes; ++i) {
      all &= state[i];
      any |= state[i];
    }
    if (!(all & kAccessible)) fail("bounds", "between the elements of a strided array\n  " + describe());
    if (any & kInFlight) report_in_flight(state);
    if (use.write) {
      if (!(all & kWritable)) fail("bounds", "written through a pointer to read-only memory\n  " + describe());
      for (size_t i = 0; i < bytes; ++i) state[i] |= kInitialised;
    } else if (!(all & kInitialised)) {
      suspect("uninitialised", "read before anything was written there\n  " + describe());
    }
  }

  [[noreturn]] void report_in_flight(const uint8_t* state) const {
    while (!(*state & kInFlight)) ++state;
    const Access& copy = region.cells[(state - region.state) >> region.granule_log2].write;
    fail("copy", format("an asynchronous copy to these bytes has not been waited for\n  %s\n  copied by %s, %s",
                        describe().c_str(), name_of(copy).c_str(), name_of_code(code_of(copy)).c_str()));
  }

  // Shared memory is reused block after block: what an earlier block, or cluster, left in its cells does not count.
  bool counts(const Access& before) const {
    const unsigned cluster = launch->request.cluster;
    return before.clock && !(region.owner && before.block / cluster != thread.block->number / cluster);
  }

  void check_race(const Access& before, bool before_wrote) const {
    if (!counts(before) || (before.atomic && use.atomic) || happened_before(before, thread)) return;
    fail("race", format("unordered accesses to the same memory\n  %s\n  %s %s%s it before, %s", describe().c_str(),
                        name_of(before).c_str(), before.atomic ? "atomically " : "", before_wrote ? "wrote" : "read",
                        name_of_code(code_of(before)).c_str()));
  }

  void remember_read(Cell& cell, const Access& now) const {
    Access &first = cell.reads[0], &second = cell.reads[1];
    if (!counts(first) || happened_before(first, thread)) {
      first = now;
      if (!counts(second) || happened_before(second, thread)) second.clock = 0;
    } else if (!counts(second) || happened_before(second, thread) || distance(first, now) > distance(first, second)) {
      second = now;
    }
  }

  void check_cells() const {
    const auto offset = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(code) - launch->module.base);
    const Access now{thread.block->number, thread.index, use.atomic, thread.clock, offset};
    const size_t first = (address - region.begin) >> region.granule_log2;
    const size_t last = (address - region.begin + bytes - 1) >> region.granule_log2;
    for (size_t c = first; c <= last; ++c) {
      Cell& cell = region.cells[c];
      check_race(cell.write, true);
      if (use.write) {
        check_race(cell.reads[0], false);
        check_race(cell.reads[1], false);
        cell.write = now;
        cell.reads[0].clock = cell.reads[1].clock = 0;
      } else {
        remember_read(cell, now);
      }
    }
  }
};

bool in_module(const void* address) {
  for (auto [begin, end] : launch->module.segments)
    if (reinterpret_cast<uintptr_t>(address) - begin < end - begin) return true;
  return false;
}

}  // namespace

void check_access(const void* address, size_t bytes, Use use, bool aligned, const void* code) {
  Thread& thread = self();
  const auto target = static_cast<const char*>(address);
  if (static_cast<size_t>(target - thread.fiber.stack) < kStackBytes || !bytes) return;  // its own local variables
  const char* verb = use.write ? "writes" : "reads";
  if (aligned && reinterpret_cast<uintptr_t>(address) % bytes)
    fail("alignment", format("an access of %zu bytes must be aligned to as many\n  %s %s address %p, %s", bytes,
                             name_of(thread).c_str(), verb, address, name_of_code(code).c_str()));
  Region* const region = memory->find(address);
  if (!region) {
    if (!use.write && in_module(address)) return;  // a constant table
    const char* where = is_fiber_stack(address) ? "a local variable of another thread"
                        : in_module(address)    ? "a global variable, which kernels must not have"
                                                : "no memory of the launch";
    fail("bounds", format("%s\n  %s %s %zu bytes at address %p, %s", where, name_of(thread).c_str(), verb, bytes,
                          address, name_of_code(code).c_str()));
  }
  const Check check{thread, *region, target, bytes, use, code};
  check.check_bytes();
  if (region->owner && region->owner != thread.block) {
    if (launch->request.cluster == 1) fail("bounds", "shared memory of another block\n  " + check.describe());
    if (!region->owner->alive) fail("bounds", "shared memory of a block that has returned\n  " + check.describe());
  }
  check.check_cells();
}

void set_in_flight(const void* address, size_t bytes, bool in_flight) {
  Region* const region = memory->find(address);
  if (!region) return;
  uint8_t* const state = region->state + (static_cast<const char*>(address) - region->begin);
  for (size_t i = 0; i < bytes; ++i) state[i] = in_flight ? state[i] | kInFlight : state[i] & ~kInFlight;
}

}  // namespace emulator
