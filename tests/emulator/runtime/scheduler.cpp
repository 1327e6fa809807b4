// Runs fibers one at a time in an order drawn from the seed.

#include <algorithm>
#include <cstring>

#include "synchronise.hpp"

namespace emulator {
namespace {

struct Ready {
  uint64_t key;  // smallest first
  Thread* thread;
  bool operator<(const Ready& other) const { return key > other.key; }  // std::push_heap keeps the largest on top
};

std::vector<Ready> ready;

uint64_t key_of(const Thread& thread) {
  const uint64_t order =
      (&thread - thread.block->threads.data()) + uint64_t{1024} * (thread.block - &launch->blocks[0]);
  switch (launch->request.schedule) {
    case Schedule::thread:
      return order;
    case Schedule::reverse:
      return ~order;
    case Schedule::random:
      return launch->schedule_random();
    case Schedule::priority:
      return thread.block->warp_priority[thread.warp()] << 32 | launch->schedule_random() >> 32;
  }
  return order;
}

// Static shared memory exists once in the loaded module: blocks that run together take turns with it.
void make_resident(Block& block) {
  if (launch->resident == &block) return;
  Module& module = launch->module;
  if (launch->resident)
    memcpy(launch->resident->static_shared.data(), module.static_shared, module.static_shared_bytes);
  memcpy(module.static_shared, block.static_shared.data(), module.static_shared_bytes);
  launch->resident = &block;
}

void suspend() {
  switch_fiber(self().fiber, launch->main);
}

void fiber_main() {
  finish_first_switch();
  launch->request.entry(launch->request.arguments);
  leave();
  suspend();
  __builtin_unreachable();
}

void start_threads() {
  size_t stack = 0;
  for (Block& block : launch->blocks) {
    for (Thread& thread : block.threads) {
      prepare(thread.fiber, fiber_stack(stack++), fiber_main);
      make_ready(thread);
    }
  }
}

void report_deadlock() {
  std::string text = "no thread can go on";
  std::vector<std::pair<std::string, int>> seen;  // a reason to wait, and how many more threads share it
  for (Block& block : launch->blocks) {
    for (Thread& thread : block.threads) {
      if (thread.exited) continue;
      const std::string reason = format(" waits in %s at %s", thread.waits_for, name_of(thread.site).c_str());
      auto same =
          std::find_if(seen.begin(), seen.end(), [&](auto& s) { return s.first.find(reason) != std::string::npos; });
      if (same != seen.end())
        ++same->second;
      else
        seen.emplace_back(name_of(thread) + reason, 0);
    }
  }
  unsigned returned = 0;
  for (const Block& block : launch->blocks) returned += block.threads.size() - block.alive;
  for (auto& [reason, more] : seen)
    text += "\n  " + reason + (more ? format(" (and %d more threads)", more) : std::string());
  if (returned) text += format("\n  %u threads have returned", returned);
  note_fault("deadlock", text);
}

}  // namespace

void make_ready(Thread& thread) {
  thread.waits_for = nullptr;
  ready.push_back({key_of(thread), &thread});
  std::push_heap(ready.begin(), ready.end());
}

void wait(const char* what, Site site) {
  self().waits_for = what;
  self().site = site;
  suspend();
}

void preempt() {
  Thread& thread = self();
  if (launch->request.schedule == Schedule::priority)
    thread.block->warp_priority[thread.warp()] = launch->schedule_random() >> 32;
  make_ready(thread);
  suspend();
}

void run_blocks() {
  ready.clear();
  start_threads();
  while (!ready.empty()) {
    std::pop_heap(ready.begin(), ready.end());
    Thread& thread = *ready.back().thread;
    ready.pop_back();
    make_resident(*thread.block);
    launch->current = &thread;
    switch_fiber(launch->main, thread.fiber);
    launch->current = nullptr;
    if (!launch->fault.empty()) return;  // every fiber is abandoned where it stands
  }
  for (Block& block : launch->blocks)
    if (block.alive) return report_deadlock();
}

}  // namespace emulator
