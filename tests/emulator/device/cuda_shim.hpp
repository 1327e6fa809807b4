// CUDA's built-in names for g++. Included in front of every kernel source; kernels include none of this themselves.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

// NVIDIA's vector_functions.h asks for the whole runtime API but needs none of it.
#define __CUDA_RUNTIME_API_H__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../runtime/interface.hpp"

#undef __global__
#undef __constant__
#undef __shared__
#undef __launch_bounds__
#undef __cluster_dims__
#undef __grid_constant__
#undef __noinline__
#define __global__ __attribute__((noinline))
#define __constant__ const
// One copy per OS thread, and all fibers share theirs: exactly the block's static shared memory. An initialiser is an
// error, as in nvcc, and there is no hidden flag that says whether one has run.
#define __shared__ __constinit thread_local
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __restrict__ __restrict
#define __noinline__ __attribute__((noinline))

#define threadIdx (::emulator::thread_index())
#define blockIdx (::emulator::block_index())
#define blockDim (::emulator::block_shape())
#define gridDim (::emulator::grid_shape())
constexpr int warpSize = 32;

#include "atomics.hpp"
#include "math_twins.hpp"
#include "warp.hpp"
