// The mask, tile by tile: which tiles there are to visit, which of them need a mask at all, and the test in those.
#pragma once

#include "../band.h"
#include "online_softmax.h"
#include "tile_product.h"

namespace attn {

constexpr int kFarthest = 1 << 30;           // no diagonal of a problem lies as far out
constexpr int kMostRows = kFarthest - 1024;  // of a head, so that sums of a diagonal and a position stay 32-bit numbers

// A Band in 32-bit numbers, which loops can afford to compute with.
struct TileBand {
  int low, high;

  ATTN_HOST_DEVICE static TileBand of(const Band& band) { return {near(band.low), near(band.high)}; }

 private:
  ATTN_HOST_DEVICE static int near(int64_t x) {
    return static_cast<int>(x < -kFarthest ? -kFarthest : x > kFarthest ? kFarthest : x);
  }
};

// Tiles [first, last) of a sequence; empty where first >= last.
struct TileRange {
  int first, last;

  ATTN_HOST_DEVICE bool has(int tile) const { return first <= tile && tile < last; }
};

// The tiles of `tile` numbers, out of [0, length), that meet [begin, end), and those that lie in it.
ATTN_HOST_DEVICE inline TileRange tiles_that_meet(int begin, int end, int length, int tile) {
  if (begin < 0) begin = 0;
  if (end > length) end = length;
  if (begin >= end) return {0, 0};
  return {begin / tile, (end + tile - 1) / tile};
}
ATTN_HOST_DEVICE inline TileRange tiles_within(int begin, int end, int length, int tile) {
  if (begin < 0) begin = 0;
  if (end > length) end = length;
  if (begin >= end) return {0, 0};
  return {(begin + tile - 1) / tile, end / tile};
}

// The key tiles that some query of [q0, q1) sees, and those that all of them see whole.
ATTN_HOST_DEVICE inline TileRange key_tiles(TileBand band, int q0, int q1, int kv_len, int tile) {
  return tiles_that_meet(q0 + band.low, q1 + band.high, kv_len, tile);
}
ATTN_HOST_DEVICE inline TileRange plain_key_tiles(TileBand band, int q0, int q1, int kv_len, int tile) {
  return tiles_within(q1 - 1 + band.low, q0 + 1 + band.high, kv_len, tile);
}
// The query tiles that see some key of [k0, k1), and those of whose queries all see all of these keys, or would if
// there were as many queries as the tile has rows.
ATTN_HOST_DEVICE inline TileRange query_tiles(TileBand band, int k0, int k1, int q_len, int tile) {
  return tiles_that_meet(k0 - band.high, k1 - band.low, q_len, tile);
}
ATTN_HOST_DEVICE inline TileRange plain_query_tiles(TileBand band, int k0, int k1, int q_len, int tile) {
  return tiles_within(k1 - 1 - band.high, k0 + 1 - band.low, q_len + tile - 1, tile);
}

// The mask of the tile from query q0 and key k0 on, in the tile's own numbers.
struct TileMask {
  int low, high, keys;

  ATTN_HOST_DEVICE static TileMask of(TileBand band, int q0, int k0, int kv_len) {
    return {band.low + (q0 - k0), band.high + (q0 - k0), kv_len - k0};
  }
  ATTN_HOST_DEVICE bool sees(int query, int key) const {
    return low <= key - query && key - query <= high && key < keys;
  }
  // The same mask in numbers that begin at (query, key). A thread moves the mask to where it begins and then asks about
  // constants; were it to ask about its own place, the compiler would keep one sum for every score in a register.
  ATTN_HOST_DEVICE TileMask from(int query, int key) const {
    return {low - (key - query), high - (key - query), keys - key};
  }
};

// Put -inf where the mask hides a score. The accumulator begins at (row, column) of the tile; its rows are queries, or
// keys where it is `transposed`.
template <bool transposed = false, typename C>
__device__ inline void hide_scores(C& scores, const TileMask& tile_mask, int row, int column) {
  const int lane = thread_read_anew() % kWarp;
  row += accumulator_row(lane, 0);
  column += accumulator_column(lane, 0);
  const TileMask mask = transposed ? tile_mask.from(column, row) : tile_mask.from(row, column);
#pragma unroll
  for (int m = 0; m < C::kRowPieces; ++m) {
#pragma unroll
    for (int n = 0; n < C::kColumnTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int down = m * kPiece + accumulator_row(0, i), right = n * kChunk + accumulator_column(0, i);
        if (!(transposed ? mask.sees(right, down) : mask.sees(down, right))) scores.at[m][n][i] = minus_infinity();
      }
    }
  }
}

// The same for an accumulator whose rows are queries and which begins at the tile's first key. Where a row's keys begin
// and end is computed once, so that a score takes two comparisons and a choice, and one comparison where not
// `bounded_below`: comparisons have half the rate of additions, and a diagonal tile has one of these for every score.
template <bool bounded_below, typename C>
__device__ inline void hide_ends(C& scores, const TileMask& mask, int row) {
  const int lane = thread_read_anew() % kWarp, column = accumulator_column(lane, 0);
#pragma unroll
  for (int m = 0; m < C::kRowPieces; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = row + m * kPiece + accumulator_row(lane, 2 * half);
      const int first = mask.low + query - column, last = min(mask.high + query, mask.keys - 1) - column;
#pragma unroll
      for (int n = 0; n < C::kColumnTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int key = n * kChunk + i;
          if (key > last || (bounded_below && key < first)) scores.at[m][n][2 * half + i] = minus_infinity();
        }
      }
    }
  }
}

}  // namespace attn
