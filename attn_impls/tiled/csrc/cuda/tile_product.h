// Products of tiles by one warp: accumulator += A * B, in pieces of 16 x 16, from shared memory or from registers.
#pragma once

#include <type_traits>

#include "fragments.h"
#include "ptx.h"
#include "shared_tile.h"

namespace attn {

// [16 * row_pieces, 8 * column_tiles] floats of a warp, as C fragments.
template <int row_pieces, int column_tiles>
struct Accumulator {
  static constexpr int kRowPieces = row_pieces, kColumnTiles = column_tiles;
  float at[row_pieces][column_tiles][4];

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < row_pieces * column_tiles * 4; ++i) at[i / (column_tiles * 4)][i / 4 % column_tiles][i % 4] = 0;
  }
};

// A factor in shared memory whose rows run along the depth of the product: an A [rows, depth], or a B [columns, depth].
template <typename Layout>
struct AlongDepth {
  uint32_t at;

  __device__ static AlongDepth left(uint32_t tile, int row) { return {address(tile, row, down_then_right(lane()))}; }
  __device__ static AlongDepth right(uint32_t tile, int row) { return {address(tile, row, right_then_down(lane()))}; }

  __device__ void load(int piece, int depth, uint32_t (&to)[4]) const {
    load_matrices(Layout::step(at, piece * kPiece, depth * 2), to);
  }

 private:
  __device__ static int lane() { return threadIdx.x % kWarp; }
  __device__ static uint32_t address(uint32_t tile, int row, PieceRow place) {
    return tile + Layout::offset(row + place.row, place.chunk);
  }
};

// A factor in shared memory whose rows run across the depth: an A [depth, rows], or a B [depth, columns]. It begins at
// column 8 * chunk of the tile; chunk is even.
template <typename Layout>
struct AcrossDepth {
  uint32_t at;
  int chunk;

  __device__ static AcrossDepth left(uint32_t tile, int chunk) {
    return {address(tile, right_then_down(lane())), chunk};
  }
  __device__ static AcrossDepth right(uint32_t tile, int chunk) {
    return {address(tile, down_then_right(lane())), chunk};
  }

  __device__ void load(int piece, int depth, uint32_t (&to)[4]) const {
    load_matrices_transposed(Layout::step(at, depth * kPiece, chunk + piece * 2), to);
  }

 private:
  __device__ static int lane() { return threadIdx.x % kWarp; }
  __device__ static uint32_t address(uint32_t tile, PieceRow place) {
    return tile + Layout::offset(place.row, place.chunk);
  }
};

// An A in registers.
template <int row_pieces, int depth_pieces>
struct Held {
  uint32_t at[row_pieces][depth_pieces][4];

  __device__ void load(int piece, int depth, uint32_t (&to)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = at[piece][depth][i];
  }

  // Round an accumulator: two C fragments side by side are one A fragment. Past its columns there are zeros.
  template <typename T, int column_tiles>
  __device__ static Held rounded(const Accumulator<row_pieces, column_tiles>& from) {
    static_assert(column_tiles % 2 == 0 && column_tiles <= depth_pieces * 2);
    Held held;
#pragma unroll
    for (int m = 0; m < row_pieces; ++m) {
#pragma unroll
      for (int k = 0; k < depth_pieces; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (2 * k < column_tiles) {
            const float (&c)[4] = from.at[m][2 * k + i / 2];
            held.at[m][k][i] = pack<T>(c[i % 2 * 2], c[i % 2 * 2 + 1]);
          } else {
            held.at[m][k][i] = 0;
          }
        }
      }
    }
    return held;
  }

  template <typename Layout>
  __device__ static Held loaded(const AlongDepth<Layout>& from) {
    Held held;
#pragma unroll
    for (int m = 0; m < row_pieces; ++m) {
#pragma unroll
      for (int k = 0; k < depth_pieces; ++k) from.load(m, k, held.at[m][k]);
    }
    return held;
  }
};

// The A [16 * row_pieces, Layout::kColumns] that begins at `row` of a tile: read once and held, or read for each
// product.
template <typename Layout, int row_pieces, bool held>
__device__ inline auto left_factor(uint32_t tile, int row) {
  const auto in_tile = AlongDepth<Layout>::left(tile, row);
  if constexpr (held)
    return Held<row_pieces, Layout::kColumns / kPiece>::loaded(in_tile);
  else
    return in_tile;
}

// c += a * b over `depth_pieces` * 16 of depth. After each 16 of it, between(std::integral_constant<int, piece>{}) may
// do work on other numbers, which then takes turns with the tensor cores' instead of waiting for it.
template <typename T, int depth_pieces, int k = 0, typename C, typename A, typename B, typename Between>
__device__ inline void add_product(C& c, const A& a, const B& b, const Between& between) {
  static_assert(C::kColumnTiles % 2 == 0);
  if constexpr (k < depth_pieces) {
    uint32_t left[C::kRowPieces][4];
#pragma unroll
    for (int m = 0; m < C::kRowPieces; ++m) a.load(m, k, left[m]);
#pragma unroll
    for (int n = 0; n < C::kColumnTiles / 2; ++n) {
      uint32_t right[4];
      b.load(n, k, right);
#pragma unroll
      for (int m = 0; m < C::kRowPieces; ++m) {
        multiply_add<T>(c.at[m][2 * n], left[m], right[0], right[1]);
        multiply_add<T>(c.at[m][2 * n + 1], left[m], right[2], right[3]);
      }
    }
    between(std::integral_constant<int, k>{});
    add_product<T, depth_pieces, k + 1>(c, a, b, between);
  }
}
template <typename T, int depth_pieces, typename C, typename A, typename B>
__device__ inline void add_product(C& c, const A& a, const B& b) {
  add_product<T, depth_pieces>(c, a, b, [](auto) {});
}

// Store what a warp holds as an A into a tile, from (row, 8 * chunk) on.
template <typename Layout, int row_pieces, int depth_pieces>
__device__ inline void store_held(const Held<row_pieces, depth_pieces>& held, uint32_t tile, int row, int chunk) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int m = 0; m < row_pieces; ++m) {
#pragma unroll
    for (int k = 0; k < depth_pieces; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        store_shared(
            tile + Layout::offset(row + m * kPiece + lane / 4 + i % 2 * 8, chunk + 2 * k + i / 2) + lane % 4 * 4,
            held.at[m][k][i]);
      }
    }
  }
}

// Round the rows of an accumulator, row piece m times factor[m][half], into a tile from `row` on.
template <typename T, typename Layout, typename C>
__device__ inline void store_rounded(const C& c, const float (&factor)[C::kRowPieces][2], uint32_t tile, int row) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int m = 0; m < C::kRowPieces; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int to_row = row + m * kPiece + accumulator_row(lane, 2 * half);
#pragma unroll
      for (int n = 0; n < C::kColumnTiles; ++n) {
        const float (&x)[4] = c.at[m][n];
        store_shared(tile + Layout::offset(to_row, n) + lane % 4 * 4,
                     pack<T>(x[2 * half] * factor[m][half], x[2 * half + 1] * factor[m][half]));
      }
    }
  }
}

}  // namespace attn
