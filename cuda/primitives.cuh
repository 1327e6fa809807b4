// The few things that plain C++ cannot say, as small functions. Everything else under cuda/ is free of inline PTX and of
// __CUDA_ARCH__, so that the same sources also run on a CPU: there GSPN2_EMULATED replaces this file's contents by host
// twins of the same functions (tests/emulator/emulated_primitives.hpp).
#pragma once

#ifdef GSPN2_EMULATED
#include "emulated_primitives.hpp"
#else

namespace gspn2 {

// The block's dynamic shared memory, as large as the launch asked for, aligned to 16 bytes.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char gspn2_dynamic_shared[];
  return reinterpret_cast<T*>(gspn2_dynamic_shared);
}

}  // namespace gspn2

#endif
