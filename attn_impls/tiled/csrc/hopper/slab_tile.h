// How tiles lie in shared memory for TMA and for wgmma.
//
// A tile of `rows` rows is cut into slabs of 64 columns of 16 bits, one after the other. A row of a slab is 128 bytes,
// all 32 banks once. Within it the eight chunks of 16 bytes change places by an exclusive or with the row's number
// modulo 8: this is "128-byte swizzle", which TMA writes and wgmma reads. Eight rows, 1024 bytes, are one
// turn of the pattern, and a slab begins at a multiple of them.
#pragma once

#include "../cuda/fragments.h"

namespace attn {

constexpr int kSlabColumns = 64;
constexpr int kSlabRowBytes = kSlabColumns * 2;
constexpr int kSwizzleBytes = 8 * kSlabRowBytes;  // of one turn of the pattern

template <int rows, int columns>
struct Slabs {
  static constexpr int kRows = rows, kColumns = columns, kCount = columns / kSlabColumns;
  static constexpr int kSlabBytes = rows * kSlabRowBytes, kBytes = kCount * kSlabBytes;
  static_assert(columns % kSlabColumns == 0 && rows % 8 == 0);

  // Of a chunk, counted along the row over all slabs, in bytes from the tile's beginning.
  ATTN_HOST_DEVICE static constexpr int offset(int row, int chunk) {
    return chunk / kChunk * kSlabBytes + row * kSlabRowBytes + ((chunk ^ row) % kChunk) * 16;
  }
};

}  // namespace attn
