// One step of the online softmax (Milakov and Gimelshein, arXiv:1805.02867), in units of log2.
#pragma once

namespace attn {

constexpr float kLn2 = 0.693147180559945f;

__device__ inline float minus_infinity() {
  return __int_as_float(0xff800000);
}

struct SoftmaxRow {
  float maximum;  // of the scores so far
  float sum;      // of exp2(score - maximum) so far

  __device__ static SoftmaxRow empty() { return {minus_infinity(), 0.0f}; }

  // Take in the maximum of a new tile. Returns the factor for everything that was summed up before.
  __device__ float raise(float tile_maximum) {
    const float before = maximum;
    maximum = fmaxf(before, tile_maximum);
    return exp2f(before - shift());
  }

  // What to subtract from a score before exp2. While no key was visible the maximum is -inf; 0 in its place makes
  // every weight exp2(-inf) = 0, where exp2(-inf - -inf) would be NaN.
  __device__ float shift() const { return maximum == minus_infinity() ? 0.0f : maximum; }

  // A row that saw no key has output 0 and log-sum-exp -inf, by convention.
  __device__ float inverse_sum() const { return sum == 0.0f ? 0.0f : 1.0f / sum; }
  __device__ float log_sum_exp() const { return (maximum + log2f(sum)) * kLn2; }
};

}  // namespace attn
