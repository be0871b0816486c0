// The mask, tile by tile: which tiles there are to visit, which of them need a mask at all, and the test in those.
#pragma once

#include "../band.h"
#include "online_softmax.h"
#include "tile_product.h"

namespace attn {

// Tiles [first, last) of a sequence; empty where first >= last.
struct TileRange {
  int first, last;
};

// The tiles of `tile` numbers, out of [0, length), that meet [begin, end).
ATTN_HOST_DEVICE inline TileRange tiles_that_meet(int64_t begin, int64_t end, int64_t length, int tile) {
  if (begin < 0) begin = 0;
  if (end > length) end = length;
  if (begin >= end) return {0, 0};
  return {static_cast<int>(begin) / tile, (static_cast<int>(end) + tile - 1) / tile};
}

// The key tiles that some query of [q0, q1) sees, and the query tiles that see some key of [k0, k1).
ATTN_HOST_DEVICE inline TileRange key_tiles(const Band& band, int64_t q0, int64_t q1, int64_t kv_len, int tile) {
  return tiles_that_meet(q0 + band.low, q1 + band.high, kv_len, tile);
}
ATTN_HOST_DEVICE inline TileRange query_tiles(const Band& band, int64_t k0, int64_t k1, int64_t q_len, int tile) {
  return tiles_that_meet(k0 - band.high, k1 - band.low, q_len, tile);
}

// The mask of the tile from query q0 and key k0 on, in the tile's own small numbers.
struct TileMask {
  int low, high, keys;

  ATTN_HOST_DEVICE static TileMask of(const Band& band, int64_t q0, int64_t k0, int64_t kv_len) {
    return {small(band.low + q0 - k0), small(band.high + q0 - k0), small(kv_len - k0)};
  }
  ATTN_HOST_DEVICE bool sees(int query, int key) const {
    return low <= key - query && key - query <= high && key < keys;
  }
  // The same mask in numbers that begin at (query, key). A thread moves the mask to where it begins and then asks about
  // constants; were it to ask about its own place, the compiler would keep one sum for every score in a register.
  ATTN_HOST_DEVICE TileMask from(int query, int key) const {
    return {low - (key - query), high - (key - query), keys - key};
  }

 private:
  ATTN_HOST_DEVICE static int small(int64_t x) {
    constexpr int64_t kBeyondTiles = 1 << 20;
    return static_cast<int>(x < -kBeyondTiles ? -kBeyondTiles : x > kBeyondTiles ? kBeyondTiles : x);
  }
};

// Whether some pair of the tile is hidden, by the band or by the end of the keys.
ATTN_HOST_DEVICE inline bool needs_mask(const Band& band, int64_t q0, int64_t q1, int64_t k0, int64_t k1,
                                        int64_t kv_len) {
  return k1 > kv_len || !band.shows_tile(q0, q1, k0, k1);
}

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

}  // namespace attn
