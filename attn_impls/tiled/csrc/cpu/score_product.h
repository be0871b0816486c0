// The product of the forward pass that has the inputs themselves as factors: C = A B^T, for S^T = K Q^T.
//
// bf16 numbers are multiplied in pairs where the CPU can do that: the factors are exact in bf16, so it costs no
// accuracy, and it halves the time. The other product has the weights as a factor, which would have to be rounded to
// bf16 first; it stays in fp32.
#pragma once

#include <cstdint>
#include <type_traits>

#include "matmul.h"
#include "tile_io.h"

namespace attn {

// Rows of bf16 numbers seen as rows of pairs; the floats that hold them are never computed with.
inline Rows as_pairs(const BFloat16* data, int64_t stride) {
  return {reinterpret_cast<const float*>(data), stride / 2};
}

template <typename T>
class ScoreProduct {
 public:
  ScoreProduct(int64_t head_dim, View<T> a, View<T> b)
      : head_dim_(head_dim),
        pairs_(kHasPairs && std::is_same_v<T, BFloat16> && head_dim % 2 == 0 && a.row_stride % 2 == 0 &&
               b.row_stride % 2 == 0),
        a_(a),
        b_(b) {}

  // Rows [begin, end) of a in fp32, widened into `tile` where the product, as opposed to other uses, needs them so.
  Rows widen_left(int64_t batch, int64_t head, int64_t begin, int64_t end, float* tile) const {
    return pairs_ ? Rows{} : widen_rows(a_, batch, head, begin, end, head_dim_, tile);
  }

  // Prepare rows [begin, end) of b, which `widened` holds in fp32, as the right factor of `width` columns.
  void set_right(int64_t batch, int64_t head, int64_t begin, int64_t end, Rows widened, float* right,
                 int64_t width) const {
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (pairs_) {
        const Rows rows = as_pairs(b_.row(batch, head, begin), b_.row_stride);
        return transpose(rows, end - begin, head_dim_ / 2, right, width);
      }
    }
    transpose(widened, end - begin, head_dim_, right, width);
  }

  // product[end - begin, width] = rows [begin, end) of a, which `widened` holds in fp32 if need be, times the right
  // factor.
  void multiply(int64_t batch, int64_t head, int64_t begin, int64_t end, Rows widened, const float* right,
                int64_t width, float* product) const {
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (pairs_) {
        const Rows rows = as_pairs(a_.row(batch, head, begin), a_.row_stride);
        return matmul_pairs(end - begin, width, head_dim_ / 2, {rows.data, rows.stride, 1}, right, width, product,
                            width);
      }
    }
    matmul(Into::kSet, end - begin, width, head_dim_, {widened.data, widened.stride, 1}, right, width, product, width);
  }

 private:
  int64_t head_dim_;
  bool pairs_;
  View<T> a_, b_;
};

}  // namespace attn
