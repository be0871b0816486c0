// In place of csrc/hopper/wgmma.h: products of tiles without descriptors. The result appears when it is waited for, and
// the operands must then be what they were at the start; until then the accumulator is NaN.
#pragma once

#include <memory>

#include "../cuda/tile_product.h"
#include "slab_tile.h"

namespace attn {

template <typename T>
float number_at(uint32_t at) {
  T x;
  std::memcpy(static_cast<void*>(&x.x), emulator::at(at, 2), 2);
  return static_cast<float>(x);
}

template <typename Tile>
struct AlongRows {
  uint32_t tile;
  int row;
  static AlongRows of(uint32_t tile, int row = 0) { return {tile, row}; }
  template <typename T>
  float at(int other, int depth) const {
    return number_at<T>(tile + Tile::offset(row + other, depth / 8) + depth % 8 * 2);
  }
};
template <typename Tile>
struct AcrossRows {
  uint32_t tile;
  static AcrossRows of(uint32_t tile) { return {tile}; }
  template <typename T>
  float at(int other, int depth) const {
    return number_at<T>(tile + Tile::offset(depth, other / 8) + other % 8 * 2);
  }
};

inline void begin_products() {}
inline void commit_products() {
  emulator::fibers[emulator::current].products.emplace_back();
}
template <int pending>
void wait_for_products() {
  auto& groups = emulator::fibers[emulator::current].products;
  while (groups.size() > pending + 1) {
    for (const auto& finish : groups.front()) finish();
    groups.erase(groups.begin());
  }
}
template <typename C>
void pin(C&) {}

// Finish `product`, which gives the numbers of this lane, at the next wait.
template <int column_tiles, typename Product>
void start_later(Accumulator<1, column_tiles>& c, bool add, const Product& product) {
  const std::vector<float> at_start = product();
  const Accumulator<1, column_tiles> before = c;
  std::memset(&c, emulator::kPoison, sizeof c);
  emulator::fibers[emulator::current].products.back().push_back([=, &c] {
    const std::vector<float> at_end = product();
    if (std::memcmp(at_start.data(), at_end.data(), at_end.size() * 4) != 0) {
      emulator::fail("an operand of a product changed under it");
    }
    for (int i = 0; i < column_tiles * 4; ++i) {
      c.at[0][i / 4][i % 4] = (add ? before.at[0][i / 4][i % 4] : 0.0f) + at_end[i];
    }
  });
}
// This lane's numbers of the product of a(row, depth), 64 rows a warpgroup, with b.
template <typename T, int steps, int column_tiles, typename A, typename B>
std::vector<float> numbers(const A& a, const B& b) {
  const int lane = emulator::current % 32, warp_row = emulator::current / 32 % 4 * 16;
  float rows[2][steps * 16];
  for (int half = 0; half < 2; ++half) {
    for (int k = 0; k < steps * 16; ++k) rows[half][k] = a(warp_row + lane / 4 + half * 8, k);
  }
  std::vector<float> sums(column_tiles * 4);
  for (int i = 0; i < column_tiles * 4; ++i) {
    const int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    for (int k = 0; k < steps * 16; ++k) sums[i] += rows[i / 2 % 2][k] * b.template at<T>(column, k);
  }
  return sums;
}

template <typename T, int steps, int column_tiles, typename A, typename B>
void start_product(Accumulator<1, column_tiles>& c, A a, B b, bool add) {
  start_later(c, add, [=] {
    return numbers<T, steps, column_tiles>([&](int row, int k) { return a.template at<T>(row, k); }, b);
  });
}
// The same with A in registers: the lanes of a quad hold its rows between them.
template <typename T, int steps, int column_tiles, int held, typename B>
void start_product(Accumulator<1, column_tiles>& c, const Held<1, held>& a, B b, bool add = true) {
  start_later(c, add, [=, &a] {
    using Quad = std::array<const Held<1, held>*, 4>;
    Quad quad;
    for (int t = 0; t < 4; ++t) quad[t] = emulator::from_lane(&a, emulator::current % 32 / 4 * 4 + t);
    // Row half `r` of columns 2t, 2t + 1 is in register r of a step, of the columns 8 further in register r + 2.
    const auto left = [&](int row, int k) {
      const float2 two = unpack<T>(quad[k % 8 / 2]->at[0][k / 16][row / 8 % 2 + k % 16 / 8 * 2]);
      return k % 2 ? two.y : two.x;
    };
    std::vector<float> sums = numbers<T, steps, column_tiles>(left, b);
    emulator::meet_warp();  // nobody goes on, and changes what it holds, before all have read it
    return sums;
  });
}

}  // namespace attn
