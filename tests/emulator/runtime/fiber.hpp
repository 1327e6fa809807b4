// A fiber: a stack and the place where it stopped. All fibers run on the one OS thread that launched the kernel.
#pragma once

#include <cstddef>

// Switching is a dozen instructions on x86-64; elsewhere, or if asked for, the C library's several times slower way.
#if !defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_UCONTEXT
#endif
#ifdef EMULATOR_UCONTEXT
#include <ucontext.h>
#endif

namespace emulator {

struct Fiber {
#ifdef EMULATOR_UCONTEXT
  ucontext_t context;
#else
  void* stack_pointer = nullptr;
#endif
  char* stack = nullptr;  // lowest usable byte; null for the OS thread's own stack
  void* sanitizer_stack = nullptr;
};

constexpr size_t kStackBytes = 128 * 1024;

// The stack of fiber number `index`, with an inaccessible page below it. Stacks are kept for later launches.
char* fiber_stack(size_t index);
constexpr size_t kMaximumFibers = 16 * 1024;
bool is_fiber_stack(const void* address);

// Makes the fiber start in `entry`, which must not return, on its next switch.
void prepare(Fiber& fiber, char* stack, void (*entry)());

// Stops `from`, which is running, and continues `to`.
void switch_fiber(Fiber& from, Fiber& to);

// First call on a fresh fiber: completes the switch that started it.
void finish_first_switch();

}  // namespace emulator
