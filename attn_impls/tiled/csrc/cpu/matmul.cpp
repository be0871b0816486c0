// The micro-kernel of tiled-cpu. A block of C stays in registers while a column of A and a row of B pass by: every
// loaded vector of B meets kRows numbers of A, so that arithmetic, and not the loads, sets the pace.
//
// Neither factor is packed. B is read along its rows; A is read number by number, so either of its strides may be 1.
// This is why the kernels compute S^T = K Q^T and not S = Q K^T: only the small tile of queries has to be transposed.
#include "matmul.h"

#include <algorithm>
#include <utility>

#include "vector.h"

namespace attn {
namespace {

// Rows and vectors of the block of C. 6 x 4 of AVX-512's 32 registers leave room for 4 of B and one of A; 6 x 2 do
// the same for 16 registers.
constexpr int kRows = 6;
constexpr int kVectors = sizeof(Vec) == 64 ? 4 : 2;

// What an element of A and B is, and how it is multiplied.
struct Floats {
  static Vec spread(const float* number) { return splat(*number); }
  static Vec multiply_add(Vec a, Vec b, Vec sum) { return a * b + sum; }
};

#if defined(__AVX512BF16__)
struct Pairs {
  static Vec spread(const float* pair) { return splat_pair(pair); }
  static Vec multiply_add(Vec a, Vec b, Vec sum) { return multiply_add_pairs(a, b, sum); }
};
#endif

template <typename Element, int kR, int kN, bool kAlongColumns>
void block(Into into, int64_t k, Factor a, const float* b, int64_t ldb, float* c, int64_t ldc, const float* alpha) {
  if (into == Into::kAdd) {
    // What the block is added to may lie beyond the L2 cache; fetch it while the product is computed.
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 8
      for (int n = 0; n < kN; ++n) __builtin_prefetch(c + r * ldc + n * kLanes, 1);
    }
  }
  Vec sum[kR][kN] = {};
  for (int64_t p = 0; p < k; ++p) {
    Vec row[kN];
#pragma GCC unroll 8
    for (int n = 0; n < kN; ++n) row[n] = load(b + p * ldb + n * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const Vec number = Element::spread(a.data + (kAlongColumns ? p * a.column + r : r * a.row + p));
#pragma GCC unroll 8
      for (int n = 0; n < kN; ++n) sum[r][n] = Element::multiply_add(number, row[n], sum[r][n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < kN; ++n) {
      float* to = c + r * ldc + n * kLanes;
      Vec value = sum[r][n];
      if (into == Into::kAdd) value += load(to);
      if (into == Into::kRescale) value += load(to) * alpha[r];
      store(to, value);
    }
  }
}

using Block = void (*)(Into, int64_t, Factor, const float*, int64_t, float*, int64_t, const float*);

// One block function for every size from 1 x 1 to kRows x kVectors, for what is left at the edges of C.
struct Blocks {
  Block at[kRows * kVectors];
};

template <typename Element, bool kAlongColumns, int... kIndex>
constexpr Blocks make_blocks(std::integer_sequence<int, kIndex...>) {
  return {{&block<Element, kIndex / kVectors + 1, kIndex % kVectors + 1, kAlongColumns>...}};
}

constexpr Blocks kBlocksAlongRows = make_blocks<Floats, false>(std::make_integer_sequence<int, kRows * kVectors>{});
constexpr Blocks kBlocksAlongColumns = make_blocks<Floats, true>(std::make_integer_sequence<int, kRows * kVectors>{});

// Columns of C whose block functions share a strip of B.
constexpr int64_t kColumns = kVectors * kLanes;

void multiply(const Blocks& blocks, Into into, int64_t m, int64_t n, int64_t k, Factor a, const float* b, int64_t ldb,
              float* c, int64_t ldc, const float* alpha) {
  for (int64_t j = 0; j < n; j += kColumns) {
    const int64_t vectors = std::min<int64_t>(kVectors, (n - j) / kLanes);
    for (int64_t i = 0; i < m; i += kRows) {
      const int64_t rows = std::min<int64_t>(kRows, m - i);
      blocks.at[(rows - 1) * kVectors + vectors - 1](into, k, {a.data + i * a.row, a.row, a.column}, b + j, ldb,
                                                     c + i * ldc + j, ldc, alpha == nullptr ? nullptr : alpha + i);
    }
  }
}

}  // namespace

void matmul(Into into, int64_t m, int64_t n, int64_t k, Factor a, const float* b, int64_t ldb, float* c, int64_t ldc,
            const float* alpha) {
  multiply(a.column == 1 ? kBlocksAlongRows : kBlocksAlongColumns, into, m, n, k, a, b, ldb, c, ldc, alpha);
}

#if defined(__AVX512BF16__)
static_assert(kStrip == kColumns);

void add_pairs(int64_t m, int64_t n, int64_t k, Factor a, Band band, const float* b, float* c, int64_t ldc) {
  constexpr Blocks kAlongRows = make_blocks<Pairs, false>(std::make_integer_sequence<int, kRows * kVectors>{});
  constexpr Blocks kAlongColumns = make_blocks<Pairs, true>(std::make_integer_sequence<int, kRows * kVectors>{});
  const Blocks& blocks = a.column == 1 ? kAlongRows : kAlongColumns;
  for (int64_t j = 0; j < n; j += kStrip, b += k * kStrip) {
    const int64_t vectors = std::min<int64_t>(kVectors, (n - j) / kLanes);
    for (int64_t i = 0; i < m; i += kRows) {
      const int64_t rows = std::min<int64_t>(kRows, m - i);
      const int64_t begin = std::clamp<int64_t>(i + band.low, 0, 2 * k) / 2;
      const int64_t end = (std::clamp<int64_t>(i + rows + band.high, 0, 2 * k) + 1) / 2;
      if (begin >= end) continue;
      blocks.at[(rows - 1) * kVectors + vectors - 1](Into::kAdd, end - begin,
                                                     {a.data + i * a.row + begin * a.column, a.row, a.column},
                                                     b + begin * kStrip, kStrip, c + i * ldc + j, ldc, nullptr);
    }
  }
}

void matmul_pairs(int64_t m, int64_t n, int64_t k, Factor a, const float* b, int64_t ldb, float* c, int64_t ldc) {
  constexpr Blocks kBlocks = make_blocks<Pairs, false>(std::make_integer_sequence<int, kRows * kVectors>{});
  multiply(kBlocks, Into::kSet, m, n, k, a, b, ldb, c, ldc, nullptr);
}
#else
// Never called: callers ask kHasPairs first.
void matmul_pairs(int64_t, int64_t, int64_t, Factor, const float*, int64_t, float*, int64_t) {
  __builtin_trap();
}

void add_pairs(int64_t, int64_t, int64_t, Factor, Band, const float*, float*, int64_t) {
  __builtin_trap();
}
#endif

}  // namespace attn
