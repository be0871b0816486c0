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

// In place of a maximum where no score was visible yet: any score outgrows it, and because it is finite, exp2 of a
// hidden score, -inf, less this is 0 and not NaN.
constexpr float kLowest = -3e38f;

template <int row_pieces>
struct FragmentSoftmax {
  float maximum[row_pieces][2];  // of the row's scaled scores so far, or less by at most the slack
  float sum[row_pieces][2];      // of this lane's weights exp2(score - maximum); the quad's is taken at the end

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < row_pieces * 2; ++i) maximum[i / 2][i % 2] = kLowest, sum[i / 2][i % 2] = 0.0f;
  }

  // Turn the scores of a new tile into weights.
  template <typename Scores, typename Out>
  __device__ void take(Scores& scores, Out& out, float scale_log2) {
    follow(scores, out, scale_log2);
    weigh(scores, scale_log2);
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

  // Turn the scores of the tile that was followed last into weights and sum them up.
  template <typename Scores>
  __device__ void weigh(Scores& scores, float scale_log2) {
#pragma unroll
    for (int m = 0; m < row_pieces; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int n = 0; n < Scores::kColumnTiles; ++n) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            scores.at[m][n][i] = weight(scores.at[m][n][i], m, half, scale_log2);
          }
        }
      }
    }
  }
  // The same for one score, in row piece m, row g or g + 8 of it. The scale is positive and joins the subtraction in
  // one fused multiply-add.
  __device__ float weight(float score, int m, int half, float scale_log2) {
    const float weight = fast_exp2(fmaf(score, scale_log2, -maximum[m][half]));
    sum[m][half] += weight;
    return weight;
  }

  // After the last tile. A row that saw no key has output 0 and log-sum-exp -inf, by convention.
  __device__ void finish(float (&inverse)[row_pieces][2], float (&log_sum_exp)[row_pieces][2]) {
#pragma unroll
    for (int m = 0; m < row_pieces; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float total = quad_sum(sum[m][half]);
        inverse[m][half] = total == 0.0f ? 0.0f : 1.0f / total;
        log_sum_exp[m][half] = (maximum[m][half] + log2f(total)) * kLn2;
      }
    }
  }

 private:
  // Bring maxima and sums to the scores of a new tile where that has to be; multiply(m, half, factor) is called to do
  // it for the output. Returns whether it had to be. Each lane looks at its own scores; the quad puts its maxima
  // together only where some lane's outgrew the slack.
  template <typename Scores, typename Multiply>
  __device__ bool raise(const Scores& scores, float scale_log2, const Multiply& multiply) {
    float highest[row_pieces][2];
    bool outgrown = false;
#pragma unroll
    for (int m = 0; m < row_pieces; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x = fmaxf(scores.at[m][0][2 * half], scores.at[m][0][2 * half + 1]);
#pragma unroll
        for (int n = 1; n < Scores::kColumnTiles; ++n) {
          x = fmaxf(x, fmaxf(scores.at[m][n][2 * half], scores.at[m][n][2 * half + 1]));
        }
        highest[m][half] = x;
        outgrown |= fmaf(x, scale_log2, -maximum[m][half]) > kSlack;
      }
    }
    if (!__any_sync(kAllLanes, outgrown)) return false;
#pragma unroll
    for (int m = 0; m < row_pieces; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float before = maximum[m][half];
        maximum[m][half] = fmaxf(before, quad_max(highest[m][half]) * scale_log2);
        const float factor = fast_exp2(before - maximum[m][half]);
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

// Scores as the left factor of a product: they become weights piece by piece, when the product asks for them, so that
// exponentials of one piece take turns with the tensor cores' work on another.
template <typename T, typename Scores, typename Softmax>
struct WeightsOf {
  const Scores& scores;
  Softmax& softmax;
  float scale_log2;

  __device__ void load(int piece, int depth, uint32_t (&to)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float (&c)[4] = scores.at[piece][2 * depth + i / 2];
      const int half = i % 2;
      const float first = softmax.weight(c[2 * half], piece, half, scale_log2);
      to[i] = pack<T>(first, softmax.weight(c[2 * half + 1], piece, half, scale_log2));
    }
  }
};

// out += softmax(scores) * values, where values is the right factor.
template <typename T, typename Scores, typename Softmax, typename Out, typename Values>
__device__ inline void add_weighted(Out& out, const Scores& scores, Softmax& softmax, const Values& values,
                                    float scale_log2) {
  softmax.follow(scores, out, scale_log2);
  add_product<T, Scores::kColumnTiles / 2>(out, WeightsOf<T, Scores, Softmax>{scores, softmax, scale_log2}, values);
}

// Write one number a row of those in [0, rows); lanes of a quad hold the same ones.
template <int row_pieces>
__device__ inline void store_row_numbers(const float (&x)[row_pieces][2], float* to, int64_t row, int64_t rows) {
  const int lane = threadIdx.x % kWarp;
  if (lane % 4 != 0) return;
#pragma unroll
  for (int m = 0; m < row_pieces; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t at = row + m * kPiece + accumulator_row(lane, 2 * half);
      if (static_cast<uint64_t>(at) < static_cast<uint64_t>(rows)) to[at] = x[m][half];
    }
  }
}

}  // namespace attn
