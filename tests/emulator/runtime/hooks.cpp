// The functions that instrumented kernels call. Detector builds are compiled with -fsanitize=thread, but libtsan is not
// linked: these take its place. Sanitizer builds use libasan, but undefined behaviour is reported here.

#include <cstring>

#include "detector.hpp"

namespace emulator {
namespace {

inline bool preempts() {
  return static_cast<uint32_t>(launch->schedule_random()) < launch->preempt_below;
}

inline void on_access(const void* address, size_t bytes, bool write, bool aligned, const void* code) {
  if (!launch || !launch->current || !launch->request.detect) return;
  if (static_cast<size_t>(static_cast<const char*>(address) - self().fiber.stack) < kStackBytes) return;
  if (preempts()) preempt();
  check_access(address, bytes, {write}, aligned, code);
}

}  // namespace

// Suspended before at most, never between the check and what the caller then does.
void check_atomic(const void* address, size_t bytes, Atomic how, const void* code) {
  if (!launch->request.detect) return;
  if (preempts()) preempt();
  if (how != Atomic::store) check_access(address, bytes, {false, true}, true, code);
  if (how != Atomic::load) check_access(address, bytes, {true, true}, true, code);
}

void atomic_access(const void* address, size_t bytes, Atomic how) {
  check_atomic(address, bytes, how, __builtin_return_address(0));
}

}  // namespace emulator

#define EMULATOR_HOOKS(kind, write)                              \
  void __tsan_##kind##1(void* p) {                               \
    on_access(p, 1, write, true, __builtin_return_address(0));   \
  }                                                              \
  void __tsan_##kind##2(void* p) {                               \
    on_access(p, 2, write, true, __builtin_return_address(0));   \
  }                                                              \
  void __tsan_##kind##4(void* p) {                               \
    on_access(p, 4, write, true, __builtin_return_address(0));   \
  }                                                              \
  void __tsan_##kind##8(void* p) {                               \
    on_access(p, 8, write, true, __builtin_return_address(0));   \
  }                                                              \
  void __tsan_##kind##16(void* p) {                              \
    on_access(p, 16, write, true, __builtin_return_address(0));  \
  }                                                              \
  void __tsan_unaligned_##kind##2(void* p) {                     \
    on_access(p, 2, write, false, __builtin_return_address(0));  \
  }                                                              \
  void __tsan_unaligned_##kind##4(void* p) {                     \
    on_access(p, 4, write, false, __builtin_return_address(0));  \
  }                                                              \
  void __tsan_unaligned_##kind##8(void* p) {                     \
    on_access(p, 8, write, false, __builtin_return_address(0));  \
  }                                                              \
  void __tsan_unaligned_##kind##16(void* p) {                    \
    on_access(p, 16, write, false, __builtin_return_address(0)); \
  }                                                              \
  void __tsan_##kind##_range(void* p, size_t n) {                \
    on_access(p, n, write, false, __builtin_return_address(0));  \
  }

extern "C" {

using emulator::on_access;

EMULATOR_HOOKS(read, false)
EMULATOR_HOOKS(write, true)
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

// g++ turns large copies into calls; kernels are linked with --wrap so that these calls come here.
void* __wrap_memcpy(void* to, const void* from, size_t bytes) {
  const void* code = __builtin_return_address(0);
  on_access(from, bytes, false, false, code);
  on_access(to, bytes, true, false, code);
  return memcpy(to, from, bytes);
}

void* __wrap_memmove(void* to, const void* from, size_t bytes) {
  const void* code = __builtin_return_address(0);
  on_access(from, bytes, false, false, code);
  on_access(to, bytes, true, false, code);
  return memmove(to, from, bytes);
}

void* __wrap_memset(void* to, int value, size_t bytes) {
  on_access(to, bytes, true, false, __builtin_return_address(0));
  return memset(to, value, bytes);
}

// ---- Undefined behaviour: every handler's first argument begins with the place in the source ------------------------

struct SourceLocation {
  const char* file;
  uint32_t line;
  uint32_t column;
};

[[noreturn]] static void undefined(const char* what, const SourceLocation* where) {
  emulator::fail("undefined", emulator::format("%s\n  %s at %s:%u", what, emulator::name_of(emulator::self()).c_str(),
                                               where->file, where->line));
}

#define EMULATOR_UNDEFINED(name, what)                      \
  void __ubsan_handle_##name(const SourceLocation* where) { \
    undefined(what, where);                                 \
  }

EMULATOR_UNDEFINED(add_overflow, "signed integer overflow in an addition")
EMULATOR_UNDEFINED(sub_overflow, "signed integer overflow in a subtraction")
EMULATOR_UNDEFINED(mul_overflow, "signed integer overflow in a multiplication")
EMULATOR_UNDEFINED(negate_overflow, "signed integer overflow in a negation")
EMULATOR_UNDEFINED(divrem_overflow, "division by zero, or its result overflows")
EMULATOR_UNDEFINED(shift_out_of_bounds, "shift by a negative or too large amount")
EMULATOR_UNDEFINED(out_of_bounds, "index outside an array")
EMULATOR_UNDEFINED(pointer_overflow, "pointer arithmetic wraps around")
EMULATOR_UNDEFINED(load_invalid_value, "bool or enum with a value it cannot have")
EMULATOR_UNDEFINED(vla_bound_not_positive, "array of no elements")
EMULATOR_UNDEFINED(nonnull_arg, "null where the function does not allow it")
EMULATOR_UNDEFINED(invalid_builtin, "zero given to a bit-counting builtin")
EMULATOR_UNDEFINED(builtin_unreachable, "code that was declared unreachable was reached")
EMULATOR_UNDEFINED(missing_return, "a function that returns a value ended without one")

void __ubsan_handle_type_mismatch_v1(const SourceLocation* where, void* pointer) {
  undefined(pointer ? "misaligned or too small object" : "null pointer used", where);
}

}  // extern "C"
