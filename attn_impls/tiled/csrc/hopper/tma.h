// The Tensor Memory Accelerator (TMA): one thread asks for a box of a tensor, and the TMA finds the addresses, moves
// the bytes and swizzles them. What of the box lies outside the tensor is filled with zeros on the way in, and left out
// on the way out. tensor_map.h makes the maps.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "slab_tile.h"

namespace attn {

// Where a box begins in a tensor [batch, heads, rows, head_dim].
struct BoxAt {
  int column, row, head, batch;
};

// Start to copy a box to shared memory; its bytes, all of them, are counted by the barrier.
__device__ inline void start_load(uint32_t to, const CUtensorMap& map, BoxAt at, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(at.column), "r"(at.row), "r"(at.head), "r"(at.batch)
      : "memory");
}

// The same for all slabs of a tile that begins at `row`.
template <typename Tile>
__device__ inline void start_tile_load(uint32_t to, const CUtensorMap& map, int row, int head, int batch,
                                       uint32_t barrier) {
#pragma unroll
  for (int slab = 0; slab < Tile::kCount; ++slab) {
    start_load(to + slab * Tile::kSlabBytes, map, {slab * kSlabColumns, row, head, batch}, barrier);
  }
}

// Start to copy a box from shared memory, which publish_stores() was called for.
__device__ inline void start_store(const CUtensorMap& map, BoxAt at, uint32_t from) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
               "r"(from), "r"(at.column), "r"(at.row), "r"(at.head), "r"(at.batch)
               : "memory");
}
// Wait until the stores that this thread started have read their shared memory.
__device__ inline void wait_for_stores_to_read() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

__device__ inline void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

}  // namespace attn
