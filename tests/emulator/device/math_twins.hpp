// Arithmetic that exists only on the device: host twins, rounded once. The approximate ones are more accurate here than
// on a GPU.
#pragma once

template <typename A, typename B>
inline std::common_type_t<A, B> max(A a, B b) {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<C>) return std::fmax(C(a), C(b));
  return C(a) < C(b) ? C(b) : C(a);
}

template <typename A, typename B>
inline std::common_type_t<A, B> min(A a, B b) {
  using C = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<C>) return std::fmin(C(a), C(b));
  return C(b) < C(a) ? C(b) : C(a);
}

inline float __fmaf_rn(float a, float b, float c) {
  return fmaf(a, b, c);
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __frcp_rn(float a) {
  return 1.0f / a;
}
inline float __fsqrt_rn(float a) {
  return sqrtf(a);
}
inline double __fma_rn(double a, double b, double c) {
  return fma(a, b, c);
}
inline double __dadd_rn(double a, double b) {
  return a + b;
}
inline double __dsub_rn(double a, double b) {
  return a - b;
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline double __ddiv_rn(double a, double b) {
  return a / b;
}
inline double __drcp_rn(double a) {
  return 1.0 / a;
}

inline float rsqrtf(float a) {
  return static_cast<float>(1.0 / sqrt(static_cast<double>(a)));
}
inline double rsqrt(double a) {
  return 1.0 / sqrt(a);
}
inline float __expf(float a) {
  return expf(a);
}
inline float __logf(float a) {
  return logf(a);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __saturatef(float a) {
  return fminf(fmaxf(a, 0.0f), 1.0f);
}

inline __half __hfma(__half a, __half b, __half c) {
  return __double2half(fma(double(__half2float(a)), double(__half2float(b)), double(__half2float(c))));
}
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  return __double2bfloat16(fma(double(__bfloat162float(a)), double(__bfloat162float(b)), double(__bfloat162float(c))));
}

namespace emulator {
template <typename To, typename From>
inline To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  __builtin_memcpy(&result, &value, sizeof(To));
  return result;
}
}  // namespace emulator

inline int __float_as_int(float a) {
  return emulator::bits_as<int>(a);
}
inline unsigned __float_as_uint(float a) {
  return emulator::bits_as<unsigned>(a);
}
inline float __int_as_float(int a) {
  return emulator::bits_as<float>(a);
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline float __uint_as_float(unsigned a) {
  return emulator::bits_as<float>(a);
}
inline long long __double_as_longlong(double a) {
  return emulator::bits_as<long long>(a);
}
inline double __longlong_as_double(long long a) {
  return emulator::bits_as<double>(a);
}

inline int __popc(unsigned a) {
  return __builtin_popcount(a);
}
inline int __popcll(unsigned long long a) {
  return __builtin_popcountll(a);
}
inline int __clz(int a) {
  return a ? __builtin_clz(static_cast<unsigned>(a)) : 32;
}
inline int __clzll(long long a) {
  return a ? __builtin_clzll(static_cast<unsigned long long>(a)) : 64;
}
inline int __ffs(int a) {
  return __builtin_ffs(a);
}
inline int __ffsll(long long a) {
  return __builtin_ffsll(a);
}

// Loads and stores with a cache hint.
template <typename T>
inline T __ldg(const T* address) {
  return *address;
}
template <typename T>
inline T __ldca(const T* address) {
  return *address;
}
template <typename T>
inline T __ldcg(const T* address) {
  return *address;
}
template <typename T>
inline T __ldcs(const T* address) {
  return *address;
}
template <typename T>
inline void __stcg(T* address, T value) {
  *address = value;
}
template <typename T>
inline void __stcs(T* address, T value) {
  *address = value;
}
template <typename T>
inline void __stwb(T* address, T value) {
  *address = value;
}
template <typename T>
inline void __stwt(T* address, T value) {
  *address = value;
}
