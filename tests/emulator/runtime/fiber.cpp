#include "fiber.hpp"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

#include "sanitizer.hpp"

namespace emulator {
namespace {

constexpr size_t kGuardBytes = 4096;
constexpr size_t kStrideBytes = kStackBytes + kGuardBytes;

char* reserve_stacks() {
  // Only address space: a page is used when a fiber first touches it.
  void* memory = mmap(nullptr, kStrideBytes * kMaximumFibers, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  return static_cast<char*>(memory);
}

char* const stacks = reserve_stacks();
size_t guarded = 0;  // how many stacks have their guard page

// ASan must know which stack is in use. The OS thread's own is learnt when a fiber starts.
const void* main_stack = nullptr;
size_t main_stack_bytes = 0;

}  // namespace

char* fiber_stack(size_t index) {
  for (; guarded <= index; ++guarded) mprotect(stacks + guarded * kStrideBytes, kGuardBytes, PROT_NONE);
  return stacks + index * kStrideBytes + kGuardBytes;
}

bool is_fiber_stack(const void* address) {
  return static_cast<size_t>(static_cast<const char*>(address) - stacks) < kStrideBytes * kMaximumFibers;
}

void finish_first_switch() {
  after_switch(nullptr, &main_stack, &main_stack_bytes);
}

#ifdef EMULATOR_UCONTEXT

void prepare(Fiber& fiber, char* stack, void (*entry)()) {
  forget_stack(stack, kStackBytes);
  getcontext(&fiber.context);
  fiber.stack = stack;
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

static void swap(Fiber& from, Fiber& to) {
  swapcontext(&from.context, &to.context);
}

#else

// Saves the registers a call must preserve on the old stack and restores them from the new one.
asm(R"(
.text
.type emulator_swap, @function
emulator_swap:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_swap, .-emulator_swap
)");
extern "C" __attribute__((visibility("hidden"))) void emulator_swap(void** save, void* load);

void prepare(Fiber& fiber, char* stack, void (*entry)()) {
  forget_stack(stack, kStackBytes);
  fiber.stack = stack;
  auto top = reinterpret_cast<uint64_t*>(stack + kStackBytes);
  *--top = 0;  // no return address: keeps the stack aligned as after a call
  *--top = reinterpret_cast<uint64_t>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = 0;
  fiber.stack_pointer = top;
}

static void swap(Fiber& from, Fiber& to) {
  emulator_swap(&from.stack_pointer, to.stack_pointer);
}

#endif

void switch_fiber(Fiber& from, Fiber& to) {
  const void* stack = to.stack ? to.stack : main_stack;
  before_switch(&from.sanitizer_stack, stack, to.stack ? kStackBytes : main_stack_bytes);
  swap(from, to);
  after_switch(from.sanitizer_stack, nullptr, nullptr);
}

}  // namespace emulator
