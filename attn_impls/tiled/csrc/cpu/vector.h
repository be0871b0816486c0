// A vector register of floats, by GCC's and Clang's vector extensions: the same code compiles to AVX-512, AVX2, SSE
// or NEON, as the compiler's target says.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX512F__)
#include <immintrin.h>
#define ATTN_VECTOR_BYTES 64
#elif defined(__AVX2__)
#include <immintrin.h>
#define ATTN_VECTOR_BYTES 32
#else
#define ATTN_VECTOR_BYTES 16
#endif

namespace attn {

constexpr int64_t kLanes = ATTN_VECTOR_BYTES / sizeof(float);
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

typedef float Vec __attribute__((vector_size(ATTN_VECTOR_BYTES)));
typedef int32_t VecInt __attribute__((vector_size(ATTN_VECTOR_BYTES)));

inline Vec load(const float* from) {
  Vec value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline void store(float* to, Vec value) {
  std::memcpy(to, &value, sizeof(value));
}

inline Vec splat(float value) {
  return value - Vec{};
}

inline Vec maximum(Vec a, Vec b) {
  return a > b ? a : b;
}

#if defined(__AVX512BF16__)
// A vector may also hold 16 pairs of bf16 numbers.
inline Vec splat_pair(const float* pair) {
  int32_t bits;
  std::memcpy(&bits, pair, sizeof(bits));
  return (Vec)_mm512_set1_epi32(bits);
}

// sum[i] plus both products of pair i.
inline Vec multiply_add_pairs(Vec a, Vec b, Vec sum) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#endif

inline int64_t round_up_to_lanes(int64_t count) {
  return (count + kLanes - 1) / kLanes * kLanes;
}

// e^x with a relative error of about 1e-7; exactly 0 where the result would be subnormal, so that a masked score
// (-inf) weighs nothing. x is a score minus a maximum or a log-sum-exp, so it is not far above 0.
//
// x = n ln 2 + r with a whole number n and |r| <= ln(2) / 2. Adding 1.5 * 2^23 rounds to a whole number, which then
// stands in the low bits of the sum; with 127 added too, a shift by 23 makes those bits the float 2^n. ln 2 is
// subtracted in two parts, the first with so few bits that n times it is exact. The polynomial, (e^r - 1 - r) / r^2,
// and the parts are those of expf in the Cephes library (S. L. Moshier).
inline Vec exp(Vec x) {
  const Vec rounder = splat(12582912.0f + 127.0f);
  const Vec shifted = x * 1.44269504088896341f + rounder;
  const Vec n = shifted - rounder;
  const Vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec series = splat(1.9875691500e-4f);
  series = series * r + 1.3981999507e-3f;
  series = series * r + 8.3334519073e-3f;
  series = series * r + 4.1665795894e-2f;
  series = series * r + 1.6666665459e-1f;
  series = series * r + 5.0000001201e-1f;
  const Vec power = (Vec)((VecInt)shifted << 23);
  const Vec value = (series * (r * r) + r + 1.0f) * power;
  return x < -87.0f ? Vec{} : value;
}

}  // namespace attn
