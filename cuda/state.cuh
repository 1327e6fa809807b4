// The state's type and the way in and out of it. A kernel is compiled for one STATE (float; double for double data); data is
// widened when it is loaded and rounded once, when it is stored.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace gspn2 {

using State = STATE;

__device__ __forceinline__ float widen(float value) {
  return value;
}
__device__ __forceinline__ double widen(double value) {
  return value;
}
__device__ __forceinline__ float widen(__half value) {
  return __half2float(value);
}
__device__ __forceinline__ float widen(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

template <typename T>
__device__ __forceinline__ T narrow(State value) {
  return static_cast<T>(value);
}
template <>
__device__ __forceinline__ __half narrow<__half>(State value) {
  return __float2half_rn(static_cast<float>(value));
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(State value) {
  return __float2bfloat16_rn(static_cast<float>(value));
}

// a·b + c, rounded once, and a·b, rounded. Always written out, so that host and device, whole and pieces, round alike.
__device__ __forceinline__ float multiply_add(float a, float b, float c) {
  return fmaf(a, b, c);
}
__device__ __forceinline__ double multiply_add(double a, double b, double c) {
  return fma(a, b, c);
}
__device__ __forceinline__ float multiply(float a, float b) {
  return __fmul_rn(a, b);
}
__device__ __forceinline__ double multiply(double a, double b) {
  return __dmul_rn(a, b);
}

}  // namespace gspn2
