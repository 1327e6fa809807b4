// Stands in front of NVIDIA's file of this name, which comes in a package of its own: their fp16 and bf16 headers need
// nothing from it but these words. Every function is a host function here; storage qualifiers are in cuda_shim.hpp.
#pragma once

#define __host__
#define __device__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
#define __forceinline__ inline __attribute__((always_inline))
