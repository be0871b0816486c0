// How a tile of 16-bit numbers lies in shared memory, so that the 8 rows that ldmatrix reads at a time meet all 32
// banks.
//
// A layout maps (row, chunk of 16 bytes) to a byte offset. Without care the rows of a tile with 64 columns start 128
// bytes apart, all in the same bank, and a read of 8 rows takes 8 turns.
#pragma once

#include "fragments.h"
#include "ptx.h"
#include "warp.h"

namespace attn {

// Rows are 16 bytes longer than they need be: consecutive rows start 4 banks apart, as an odd number of chunks has no
// factor in common with the 8 chunks that the banks hold.
template <int columns>
struct Padded {
  static constexpr int kColumns = columns, kChunks = columns / kChunk, kRowBytes = columns * 2 + 16;
  static_assert(kChunks % 2 == 0);

  ATTN_HOST_DEVICE static constexpr uint32_t offset(int row, int chunk) { return row * kRowBytes + chunk * 16; }

  // From offset(row, chunk), chunk < 2, to offset(row + rows, chunk + chunks), rows in eights and chunks in twos.
  ATTN_HOST_DEVICE static constexpr uint32_t step(uint32_t from, int rows, int chunks) {
    return from + rows * kRowBytes + chunks * 16;
  }
};

// No byte is wasted: the chunks of a row change places, by an exclusive or with the row's number. Where a row is an odd
// multiple of 64 bytes long, two rows share the 128 bytes of the banks, and the pair's number takes the row's place.
template <int columns>
struct Swizzled {
  static constexpr int kColumns = columns, kChunks = columns / kChunk, kRowBytes = columns * 2;
  static constexpr int kLowBits = kChunks % 8 == 0 ? 7 : 3;
  static_assert(kChunks % 4 == 0);

  ATTN_HOST_DEVICE static constexpr int phase(int row) { return (kLowBits == 7 ? row : row / 2) & kLowBits; }
  ATTN_HOST_DEVICE static constexpr uint32_t offset(int row, int chunk) {
    return row * kRowBytes + (chunk ^ phase(row)) * 16;
  }
  // As above; `from` may include the start of a tile that is aligned to 128 bytes. Eight rows on the phase is the same,
  // and the even part of the chunk's number is a separate exclusive or, so a loop pays one instruction or none.
  ATTN_HOST_DEVICE static constexpr uint32_t step(uint32_t from, int rows, int chunks) {
    return (from ^ (chunks & kLowBits) * 16) + rows * kRowBytes + (chunks & ~kLowBits) * 16;
  }
};

// Call body(offset, numbers, whether the chunk lies inside) for all chunks of a tile [tile_rows, Layout::kColumns],
// shared out to `threads` threads so that neighbours take neighbouring chunks. The chunk lies at `offset` in the tile
// and at `numbers` in global memory, of which the tile sees `rows` rows of `head_dim` numbers from `first` on. The
// chunks are taken in groups of a power of two, so that a thread keeps its place in the group from turn to turn, and
// the pointer walks: as many pointers as there are turns would be kept in registers from tile to tile.
template <typename Layout, int tile_rows, int threads, typename T, typename Body>
__device__ inline void for_each_chunk(int thread, T* first, int64_t row_stride, int rows, int head_dim,
                                      const Body& body) {
  constexpr int kGroup = Layout::kChunks & -Layout::kChunks, kRowsATurn = threads / kGroup;
  static_assert(threads % kGroup == 0 && tile_rows % kRowsATurn == 0);
  const int row = thread / kGroup, chunk = thread % kGroup;
  T* numbers = first + row * row_stride + chunk * kChunk;
  rows -= row;
  head_dim -= chunk * kChunk;
#pragma unroll
  for (int i = 0; i < tile_rows / kRowsATurn; ++i) {
#pragma unroll
    for (int j = 0; j < Layout::kChunks / kGroup; ++j) {
      const uint32_t offset = kRowsATurn % 8 == 0
                                  ? Layout::offset(row, chunk + j * kGroup) + i * kRowsATurn * Layout::kRowBytes
                                  : Layout::offset(row + i * kRowsATurn, chunk + j * kGroup);
      body(offset, numbers + j * kGroup * kChunk, i * kRowsATurn < rows && j * kGroup * kChunk < head_dim);
    }
    numbers += kRowsATurn * row_stride;
  }
}

// Start to copy `rows` rows from global memory to a tile; what lies outside becomes 0. A tile that nothing lies outside
// of is copied without the tests, which take as many instructions again as the copies.
template <typename Layout, int tile_rows, int threads, typename T>
__device__ inline void start_tile_copy(uint32_t tile, const T* from, int64_t row_stride, int rows, int head_dim) {
  if (rows >= tile_rows && head_dim == Layout::kColumns) {
    return for_each_chunk<Layout, tile_rows, threads>(
        thread_read_anew(), from, row_stride, rows, head_dim,
        [&](uint32_t offset, const T* numbers, bool) { start_copy(tile + offset, numbers); });
  }
  for_each_chunk<Layout, tile_rows, threads>(thread_read_anew(), from, row_stride, rows, head_dim,
                                             [&](uint32_t offset, const T* numbers, bool inside) {
                                               start_copy(tile + offset, inside ? numbers : from, inside);
                                             });
}

// The same without a branch for a tile all of whose rows exist: `tile_rows` rows from row `row` of a head on. A copy
// that reads nothing needs no other address, so what lies past head_dim costs a predicate.
template <typename Layout, int tile_rows, int threads, typename T>
__device__ inline void start_whole_tile_copy(uint32_t tile, const T* head, int64_t row_stride, int row, int head_dim) {
  constexpr int kGroup = Layout::kChunks % 8 == 0 ? 8 : Layout::kChunks & -Layout::kChunks;
  constexpr int kRowsATurn = threads / kGroup;
  static_assert(threads % kGroup == 0 && tile_rows % kRowsATurn == 0 && kRowsATurn % 8 == 0);
  const int thread = thread_read_anew(), chunk = thread % kGroup;
  const T* from = head + (row + thread / kGroup) * row_stride + chunk * kChunk;
  const uint32_t to = tile + Layout::offset(thread / kGroup, chunk);
#pragma unroll
  for (int i = 0; i < tile_rows / kRowsATurn; ++i) {
#pragma unroll
    for (int j = 0; j < Layout::kChunks / kGroup; ++j) {
      start_copy(to + i * kRowsATurn * Layout::kRowBytes + j * kGroup * 16, from + j * kGroup * kChunk,
                 (chunk + j * kGroup) * kChunk < head_dim);
    }
    from += kRowsATurn * row_stride;
  }
}

// Copy as start_tile_copy does, but through registers; it is done when it returns.
template <typename Layout, int tile_rows, int threads, typename T>
__device__ inline void copy_tile(uint32_t tile, const T* from, int64_t row_stride, int rows, int head_dim) {
  for_each_chunk<Layout, tile_rows, threads>(thread_read_anew(), from, row_stride, rows, head_dim,
                                             [&](uint32_t offset, const T* numbers, bool inside) {
                                               uint4 found{};
                                               if (inside) found = *reinterpret_cast<const uint4*>(numbers);
                                               store_shared(tile + offset, found);
                                             });
}

// One warp copies tile rows [0, tile_rows), the first `rows` of which exist, to global memory.
template <typename Layout, int tile_rows, typename T>
__device__ inline void store_warp_rows(uint32_t tile, T* to, int64_t row_stride, int rows, int head_dim) {
  for_each_chunk<Layout, tile_rows, kWarp>(threadIdx.x % kWarp, to, row_stride, rows, head_dim,
                                           [&](uint32_t offset, T* numbers, bool inside) {
                                             if (inside)
                                               *reinterpret_cast<uint4*>(numbers) = load_shared_16_bytes(tile + offset);
                                           });
}

}  // namespace attn
