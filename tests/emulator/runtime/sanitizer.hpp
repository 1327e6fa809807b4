// AddressSanitizer's interface, present only if its library is loaded (LD_PRELOAD): elsewhere these do nothing.
#pragma once

#include <cstddef>

extern "C" {
__attribute__((weak)) void __asan_poison_memory_region(const volatile void*, size_t);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void*, size_t);
__attribute__((weak)) void __asan_set_error_report_callback(void (*)(const char*));
__attribute__((weak)) void __sanitizer_start_switch_fiber(void**, const void*, size_t);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
}

namespace emulator {

inline bool sanitizer_loaded() {
  return __asan_poison_memory_region != nullptr;
}

inline void forbid(const void* memory, size_t bytes) {
  if (sanitizer_loaded()) __asan_poison_memory_region(memory, bytes);
}

inline void allow(const void* memory, size_t bytes) {
  if (sanitizer_loaded()) __asan_unpoison_memory_region(memory, bytes);
}

// A fiber that was abandoned leaves marks of its frames behind.
inline void forget_stack(char* stack, size_t bytes) {
  allow(stack, bytes);
}

inline void before_switch(void** save, const void* stack, size_t bytes) {
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(save, stack, bytes);
}

inline void after_switch(void* saved, const void** old_stack, size_t* old_bytes) {
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(saved, old_stack, old_bytes);
}

}  // namespace emulator
