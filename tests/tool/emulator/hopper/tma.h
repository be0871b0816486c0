// In place of csrc/hopper/tma.h: a copy destroys what it will overwrite when it is started and takes place
// later, when all threads have run.
#pragma once

#include "barrier.h"
#include "slab_tile.h"

struct CUtensorMap {
  const uint16_t* data;
  int64_t sizes[4], strides[3];  // columns, rows, heads, batches; elements
  int box_rows;
};

namespace attn {

struct BoxAt {
  int column, row, head, batch;
};

// The chunk of 16 bytes at `row`, `chunk` of a box in shared memory, in 128-byte swizzle of the address.
inline unsigned char* in_box(uint32_t box, int row, int chunk) {
  if (box % 1024 != 0) emulator::fail("a box that is not aligned as its swizzle");
  const uint32_t offset = row * 128 + chunk * 16;
  return emulator::at(box + (offset ^ offset >> 3 & 0x70), 16);
}

inline void start_load(uint32_t to, const CUtensorMap& map, BoxAt at, uint32_t barrier) {
  for (int i = 0; i < map.box_rows * 8; ++i) std::memset(in_box(to, i / 8, i % 8), emulator::kPoison, 16);
  emulator::later.push_back([=] {
    for (int row = 0; row < map.box_rows; ++row) {
      for (int i = 0; i < 64; ++i) {
        const bool inside = at.column + i < map.sizes[0] && at.row + row >= 0 && at.row + row < map.sizes[1];
        const int64_t from =
            at.column + i + (at.row + row) * map.strides[0] + at.head * map.strides[1] + at.batch * map.strides[2];
        const uint16_t number = inside ? map.data[from] : 0;
        std::memcpy(in_box(to, row, i / 8) + i % 8 * 2, &number, 2);
      }
    }
    bytes_arrived(barrier, map.box_rows * 128);
  });
}
template <typename Tile>
void start_tile_load(uint32_t to, const CUtensorMap& map, int row, int head, int batch, uint32_t barrier) {
  for (int slab = 0; slab < Tile::kCount; ++slab) {
    start_load(to + slab * Tile::kSlabBytes, map, {slab * kSlabColumns, row, head, batch}, barrier);
  }
}

inline void start_store(const CUtensorMap& map, BoxAt at, uint32_t from) {
  for (int row = 0; row < map.box_rows; ++row) {
    for (int i = 0; i < 64; ++i) {
      if (at.column + i >= map.sizes[0] || at.row + row >= map.sizes[1]) continue;
      const int64_t to =
          at.column + i + (at.row + row) * map.strides[0] + at.head * map.strides[1] + at.batch * map.strides[2];
      // A box of 16 rows may begin at any eighth row of its tile, and the swizzle goes by the address.
      const uint32_t offset = from + row * 128 + i / 8 * 16;
      std::memcpy(const_cast<uint16_t*>(map.data) + to, emulator::at(offset ^ offset >> 3 & 0x70, 16) + i % 8 * 2, 2);
    }
  }
}
inline void wait_for_stores_to_read() {}
inline void prefetch_map(const CUtensorMap&) {}

}  // namespace attn
