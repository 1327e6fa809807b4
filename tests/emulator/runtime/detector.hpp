// The detector: sees every memory access of the kernel before it happens and ends the launch at the first fault.
#pragma once

#include "memory.hpp"

namespace emulator {

struct Use {
  bool write;
  bool atomic = false;
  bool copy = false;  // by an asynchronous copy, at its issue or its end
};

// `aligned`: the access is one machine access, which a GPU requires to be aligned to its size.
void check_access(const void* address, size_t bytes, Use use, bool aligned, const void* code);

// An atomic access, which the caller performs right after.
void check_atomic(const void* address, size_t bytes, Atomic how, const void* code);

// The bytes are the destination of an asynchronous copy until it is waited for.
void set_in_flight(const void* address, size_t bytes, bool in_flight);

}  // namespace emulator
