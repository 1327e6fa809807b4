// Atomic functions. Announced to the detector as one access and then performed without instrumentation: nothing can run
// between the announcement and the operation.
#pragma once

namespace emulator {

template <typename T, typename Operation>
__attribute__((no_sanitize("thread"))) inline T atomic_update(T* address, Operation operation) {
  atomic_access(address, sizeof(T), Atomic::update);
  const T before = *address;
  *address = operation(before);
  return before;
}

// The operand converts to the memory's type, as by CUDA's overloads.
template <typename T>
using Operand = std::common_type_t<T>;

}  // namespace emulator

#define EMULATOR_ATOMIC(name, expression)                                                             \
  template <typename T>                                                                               \
  inline T name(T* address, emulator::Operand<T> value) {                                             \
    return emulator::atomic_update(                                                                   \
        address, [value](T before) __attribute__((no_sanitize("thread"))) { return T(expression); }); \
  }

EMULATOR_ATOMIC(atomicAdd, before + value)
EMULATOR_ATOMIC(atomicSub, before - value)
EMULATOR_ATOMIC(atomicMin, value < before ? value : before)
EMULATOR_ATOMIC(atomicMax, before < value ? value : before)
EMULATOR_ATOMIC(atomicAnd, before& value)
EMULATOR_ATOMIC(atomicOr, before | value)
EMULATOR_ATOMIC(atomicXor, before ^ value)
EMULATOR_ATOMIC(atomicInc, before >= value ? 0 : before + 1)
EMULATOR_ATOMIC(atomicDec, before == 0 || before > value ? value : before - 1)

template <typename T>
inline T atomicExch(T* address, emulator::Operand<T> value) {
  return emulator::atomic_update(address, [value](T) __attribute__((no_sanitize("thread"))) { return value; });
}

template <typename T>
inline T atomicCAS(T* address, emulator::Operand<T> expected, emulator::Operand<T> desired) {
  return emulator::atomic_update(
      address, [=](T before) __attribute__((no_sanitize("thread"))) { return before == expected ? desired : before; });
}

// One OS thread runs everything in program order: a fence has nothing to do, and none is ever seen to be missing.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
