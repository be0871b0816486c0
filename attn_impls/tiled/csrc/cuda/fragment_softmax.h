// The online softmax on C fragments: a lane holds parts of rows g and g + 8 of every row piece, and the four lanes of a
// quad hold a row between them.
#pragma once

#include "online_softmax.h"
#include "tile_product.h"

namespace attn {

__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

// A maximum may fall behind by a factor of 2^kSlack in the weights: exp2 of what exceeds it is far from overflow, and
// the division by the sum takes the excess out again. So what was summed up before is brought to a new maximum in the
// first tile of a row and then hardly ever, instead of in every tile (as FlashAttention-4 does, arXiv:2603.05451).
constexpr float kSlack = 8.0f;

template <int row_pieces>
struct FragmentSoftmax {
  float maximum[row_pieces][2];  // of the row's scores so far, before they are scaled, or less by at most the slack
  float sum[row_pieces][2];  // of this lane's weights exp2(scale * (score - maximum)); the quad's is taken at the end

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < row_pieces * 2; ++i) maximum[i / 2][i % 2] = minus_infinity(), sum[i / 2][i % 2] = 0.0f;
  }

  // Turn the scores of a new tile into weights.
  template <typename Scores, typename Out>
  __device__ void take(Scores& scores, Out& out, float scale_log2) {
    follow(scores, out, scale_log2);
    weigh<0, Scores::kColumnTiles>(scores, scale_log2);
  }

  // Bring the maxima, and what was summed up before, to the scores of a new tile.
  template <typename Scores, typename Out>
  __device__ void follow(const Scores& scores, Out& out, float scale_log2) {
    raise(scores, scale_log2, [&](int m, int half, float factor) { rescale(out, m, half, factor); });
  }

  // The same for an output that cannot be touched yet. Returns whether it is to be multiplied by `factor`, with
  // rescale(); the answer is that of the whole warp.
  template <typename Scores>
  __device__ bool follow_apart(const Scores& scores, float (&factor)[row_pieces][2], float scale_log2) {
    return raise(scores, scale_log2, [&](int m, int half, float of_row) { factor[m][half] = of_row; });
  }
  template <typename Out>
  __device__ static void rescale(Out& out, const float (&factor)[row_pieces][2]) {
#pragma unroll
    for (int i = 0; i < row_pieces * 2; ++i) rescale(out, i / 2, i % 2, factor[i / 2][i % 2]);
  }

  // Turn column tiles [first, last) of these scores into weights and sum them up. The scale is positive and joins the
  // subtraction in one fused multiply-add.
  template <int first, int last, typename Scores>
  __device__ void weigh(Scores& scores, float scale_log2) {
#pragma unroll
    for (int m = 0; m < row_pieces; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float subtract = shift(maximum[m][half], scale_log2);
#pragma unroll
        for (int n = first; n < last; ++n) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            scores.at[m][n][i] = fast_exp2(scores.at[m][n][i] * scale_log2 - subtract);
            sum[m][half] += scores.at[m][n][i];
          }
        }
      }
    }
  }

  // After the last tile. A row that saw no key has output 0 and log-sum-exp -inf, by convention.
  __device__ void finish(float (&inverse)[row_pieces][2], float (&log_sum_exp)[row_pieces][2], float scale_log2) {
#pragma unroll
    for (int m = 0; m < row_pieces; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float total = quad_sum(sum[m][half]);
        inverse[m][half] = total == 0.0f ? 0.0f : 1.0f / total;
        log_sum_exp[m][half] = (maximum[m][half] * scale_log2 + log2f(total)) * kLn2;
      }
    }
  }

 private:
  // While no key was visible, subtract 0: exp2(-inf - 0) is 0, where exp2(-inf - -inf) would be NaN.
  __device__ static float shift(float maximum, float scale_log2) {
    return maximum == minus_infinity() ? 0.0f : maximum * scale_log2;
  }

  // Bring maxima and sums to the scores of a new tile where that has to be; multiply(m, half, factor) is called to do
  // it for the output. Returns whether it had to be.
  template <typename Scores, typename Multiply>
  __device__ bool raise(const Scores& scores, float scale_log2, const Multiply& multiply) {
    float highest[row_pieces][2];
    bool outgrown = false;
#pragma unroll
    for (int m = 0; m < row_pieces; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& x = highest[m][half] = minus_infinity();
#pragma unroll
        for (int n = 0; n < Scores::kColumnTiles; ++n) {
          x = fmaxf(x, fmaxf(scores.at[m][n][2 * half], scores.at[m][n][2 * half + 1]));
        }
        x = quad_max(x);
        // From -inf any score is infinitely far; -inf - -inf is NaN, which is not greater.
        outgrown |= (x - maximum[m][half]) * scale_log2 > kSlack;
      }
    }
    if (!__any_sync(kAllLanes, outgrown)) return false;
#pragma unroll
    for (int m = 0; m < row_pieces; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float before = maximum[m][half];
        maximum[m][half] = fmaxf(before, highest[m][half]);
        const float factor = fast_exp2(before * scale_log2 - shift(maximum[m][half], scale_log2));
        sum[m][half] *= factor;
        multiply(m, half, factor);
      }
    }
    return true;
  }

  template <typename Out>
  __device__ static void rescale(Out& out, int m, int half, float factor) {
#pragma unroll
    for (int n = 0; n < Out::kColumnTiles; ++n) {
      out.at[m][n][2 * half] *= factor;
      out.at[m][n][2 * half + 1] *= factor;
    }
  }
};

// Write one number a row; lanes of a quad hold the same ones.
template <int row_pieces>
__device__ inline void store_row_numbers(const float (&x)[row_pieces][2], float* to, int64_t row, int64_t rows) {
  const int lane = threadIdx.x % kWarp;
  if (lane % 4 != 0) return;
#pragma unroll
  for (int m = 0; m < row_pieces; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t at = row + m * kPiece + accumulator_row(lane, 2 * half);
      if (at < rows) to[at] = x[m][half];
    }
  }
}

}  // namespace attn
