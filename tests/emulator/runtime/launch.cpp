// The runtime's door to Python: one launch from request to report.

#include "launch.hpp"

#include <dlfcn.h>
#include <link.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "memory.hpp"
#include "sanitizer.hpp"
#include "signals.hpp"
#include "synchronise.hpp"

namespace emulator {

Launch* launch = nullptr;

Launch::Launch(const Request& asked) : request(asked), random(asked.seed), schedule_random(random()) {
  // A suspended thread is the first to go on in the fixed orders, so there it would change nothing.
  const bool useful = asked.schedule == Schedule::random || asked.schedule == Schedule::priority;
  preempt_below = useful ? static_cast<uint64_t>(asked.preempt * 4294967296.0) : 0;
}

// ---- What kernels ask -----------------------------------------------------------------------------------------------

static Index index_of(const uint32_t (&v)[3]) {
  return {v[0], v[1], v[2]};
}

Index thread_index() {
  return self().coordinates;
}
Index block_index() {
  return self().block->coordinates;
}
Index block_shape() {
  return index_of(launch->request.block);
}
Index grid_shape() {
  return index_of(launch->request.grid);
}
void* dynamic_shared_memory() {
  return self().block->dynamic_shared;
}

void trap(Site site) {
  fail("trap", format("%s stopped at %s", name_of(self()).c_str(), name_of(site).c_str()));
}

// ---- Faults ---------------------------------------------------------------------------------------------------------

void note_fault(const char* kind, const std::string& text) {
  if (launch->fault.empty()) launch->fault = std::string(kind) + "\n" + text;
}

void suspect(const char* kind, const std::string& text) {
  if (launch->suspicion.empty()) launch->suspicion = std::string(kind) + "\n" + text;
}

void fail(const char* kind, const std::string& text) {
  note_fault(kind, text);
  switch_fiber(self().fiber, launch->main);
  __builtin_unreachable();
}

std::string format(const char* pattern, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, pattern);
  vsnprintf(text, sizeof text, pattern, arguments);
  va_end(arguments);
  return text;
}

std::string name_of(const Thread& thread) {
  const Index t = thread.coordinates, b = thread.block->coordinates;
  return format("thread (%u,%u,%u) of block (%u,%u,%u)", t.x, t.y, t.z, b.x, b.y, b.z);
}

std::string name_of(Site site) {
  return format("%s:%d", site.file, site.line);
}

std::string name_of_code(const void* address) {
  // A return address: one byte less is inside the call.
  return format("<code %zx>", reinterpret_cast<uintptr_t>(address) - launch->module.base - 1);
}

// ---- The launch -----------------------------------------------------------------------------------------------------

namespace {

struct Search {
  uintptr_t address;
  Module* module;
};

// Fills in the module if this loaded object contains the address.
int examine(dl_phdr_info* info, size_t, void* data) {
  auto [address, module] = *static_cast<Search*>(data);
  Module found;
  found.base = info->dlpi_addr;
  bool contains = false;
  for (int h = 0; h < info->dlpi_phnum; ++h) {
    const auto& header = info->dlpi_phdr[h];
    const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_LOAD) {
      found.segments.emplace_back(begin, begin + header.p_memsz);
      contains |= address - begin < header.p_memsz;
    } else if (header.p_type == PT_TLS) {
      found.static_shared = static_cast<char*>(info->dlpi_tls_data);
      found.static_shared_bytes = header.p_memsz;
    }
  }
  if (contains) *module = found;
  return contains;
}

Module module_of(const void* code) {
  Module module;
  Search search{reinterpret_cast<uintptr_t>(code), &module};
  dl_iterate_phdr(examine, &search);
  return module;
}

void set_up(Block& block, uint64_t number) {
  const Request& request = launch->request;
  const uint32_t *g = request.grid, *b = request.block;
  block.number = static_cast<uint32_t>(number);
  block.coordinates = {static_cast<unsigned>(number % g[0]), static_cast<unsigned>(number / g[0] % g[1]),
                       static_cast<unsigned>(number / g[0] / g[1])};
  const unsigned count = b[0] * b[1] * b[2];
  block.alive = count;
  block.arrived = 0;
  block.predicates = 0;
  for (Block::Group& group : block.groups) group = {};
  block.threads.resize(count);
  block.warp_priority.resize((count + 31) / 32);
  for (uint64_t& priority : block.warp_priority) priority = launch->schedule_random() >> 32;
  for (unsigned t = 0; t < count; ++t) {
    Thread& thread = block.threads[t];
    thread.block = &block;
    thread.index = static_cast<uint16_t>(t);
    thread.coordinates = {t % b[0], t / b[0] % b[1], t / b[0] / b[1]};
    thread.exited = false;
    thread.waits_for = nullptr;
    thread.mask = 0;
    thread.clock = 1;
    thread.clock_at_barrier = 0;
    thread.clock_at_cluster_barrier = 0;
    memset(thread.clock_at_group_barrier, 0, sizeof thread.clock_at_group_barrier);
    memset(thread.known, 0, sizeof thread.known);
    thread.copies.clear();
    thread.open_group = 0;
  }
}

// In which order blocks, or clusters, are run.
std::vector<uint64_t> order_of_groups(uint64_t count) {
  std::vector<uint64_t> order(count);
  const Schedule schedule = launch->request.schedule;
  for (uint64_t i = 0; i < count; ++i) order[i] = schedule == Schedule::reverse ? count - 1 - i : i;
  if (schedule == Schedule::random || schedule == Schedule::priority)
    for (uint64_t i = count; i > 1; --i) std::swap(order[i - 1], order[launch->schedule_random() % i]);
  return order;
}

void run() {
  const Request& request = launch->request;
  const uint64_t count = uint64_t{request.grid[0]} * request.grid[1] * request.grid[2];
  const size_t cluster = request.cluster;
  const std::vector<uint64_t> order = order_of_groups(count / cluster);
  const size_t together = request.cooperative ? count : cluster;
  launch->blocks.resize(together);
  Memory layout(request);
  memory = &layout;
  for (size_t done = 0; done < count && launch->fault.empty(); done += together) {
    for (size_t slot = 0; slot < together; ++slot) {
      set_up(launch->blocks[slot], order[(done + slot) / cluster] * cluster + (done + slot) % cluster);
      layout.begin_block(launch->blocks[slot], slot);
    }
    launch->resident = nullptr;
    launch->arrived_in_cluster = 0;
    run_blocks();
  }
  memory = nullptr;
  forget_waiters();
}

}  // namespace
}  // namespace emulator

using namespace emulator;

extern "C" {

char* emulator_arena() {
  return arena();
}
uint64_t emulator_arena_bytes() {
  return kArenaBytes;
}
uint64_t emulator_maximum_threads() {
  return kMaximumFibers;
}
int emulator_sanitizer_loaded() {
  return sanitizer_loaded();
}

// Static shared memory of the kernel's module, which must have been touched by this OS thread.
uint64_t emulator_static_shared_bytes(const void* code) {
  return module_of(code).static_shared_bytes;
}

// Runs the launch. Returns 0, or 1 with the fault's kind and text in `report`.
int emulator_launch(const Request* request, char* report, uint64_t report_bytes) {
  Launch state(*request);
  launch = &state;
  state.module = module_of(reinterpret_cast<const void*>(request->entry));
  {
    const FaultSignals signals;
    run();
  }
  launch = nullptr;
  if (!state.suspicion.empty() && state.fault.compare(0, 4, "race") != 0) state.fault = state.suspicion;
  snprintf(report, report_bytes, "%s", state.fault.c_str());
  return !state.fault.empty();
}

}  // extern "C"
