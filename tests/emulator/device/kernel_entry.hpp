// What a built kernel exports: its signature, deduced from the function's type, and a call that unpacks arguments.
#pragma once

#include <string>
#include <utility>

#include "cuda_shim.hpp"

namespace emulator {

template <typename T>
constexpr const char* element_name() {
  if constexpr (std::is_same_v<T, float>) return "float32";
  if constexpr (std::is_same_v<T, double>) return "float64";
  if constexpr (std::is_same_v<T, __half>) return "float16";
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return "bfloat16";
  if constexpr (std::is_same_v<T, bool>) return "bool";
  if constexpr (std::is_integral_v<T>) {
    constexpr const char* names[2][4] = {{"int8", "int16", "int32", "int64"}, {"uint8", "uint16", "uint32", "uint64"}};
    constexpr int size = sizeof(T) == 1 ? 0 : sizeof(T) == 2 ? 1 : sizeof(T) == 4 ? 2 : 3;
    return names[std::is_unsigned_v<T>][size];
  }
  return "unknown";
}

// "pointer const float32", "pointer mutable int64" or "struct 96"; anything else is refused by the launcher.
template <typename P>
std::string parameter_name() {
  if constexpr (std::is_pointer_v<P>) {
    using T = std::remove_pointer_t<P>;
    return std::string("pointer ") + (std::is_const_v<T> ? "const " : "mutable ") + element_name<std::remove_cv_t<T>>();
  } else if constexpr (std::is_class_v<P> && std::is_trivially_copyable_v<P>) {
    return "struct " + std::to_string(sizeof(P));
  } else {
    return "unsupported";
  }
}

template <typename Function>
struct Entry;

template <typename... P>
struct Entry<void (*)(P...)> {
  static const char* signature() {
    static const std::string text = [] {
      std::string all;
      ((all += parameter_name<P>() + ";"), ...);
      return all;
    }();
    return text.c_str();
  }

  // Not instrumented: the argument array is the launcher's memory, which kernels may not touch.
  template <size_t... I>
  __attribute__((no_sanitize("thread", "address"))) static void unpack(void (*kernel)(P...), void** arguments,
                                                                       std::index_sequence<I...>) {
    kernel(*static_cast<P*>(arguments[I])...);
  }

  __attribute__((no_sanitize("thread", "address"))) static void call(void (*kernel)(P...), void** arguments) {
    unpack(kernel, arguments, std::index_sequence_for<P...>());
  }
};

// g++ lays out no thread-local storage, so no static shared memory, before its first use.
inline thread_local char touched;

}  // namespace emulator

#define EMULATOR_EXPORT extern "C" __attribute__((visibility("default"), no_sanitize("thread", "address")))

#define EMULATOR_ENTRY(kernel)                                    \
  EMULATOR_EXPORT void emulator_touch() {                         \
    *const_cast<volatile char*>(&emulator::touched) = 1;          \
  }                                                               \
  EMULATOR_EXPORT const char* emulator_signature() {              \
    return emulator::Entry<decltype(&kernel)>::signature();       \
  }                                                               \
  EMULATOR_EXPORT void emulator_entry(void** arguments) {         \
    emulator::Entry<decltype(&kernel)>::call(&kernel, arguments); \
  }
