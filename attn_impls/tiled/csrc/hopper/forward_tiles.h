// The tile sizes of the Hopper rungs for each width of tile: the one place to tune.
//
// A warpgroup owns 64 queries. Bounds: 65536 registers of a multiprocessor, of which a thread needs columns / 2 for its
// output, keys / 2 for its scores and about 35 more (the weights take the place of the scores); 227 KB of shared
// memory.
#pragma once

#include "../cuda/fragments.h"

namespace attn {

constexpr int kWarpgroupRows = 64;  // queries of a warpgroup: the rows of one wgmma

// For heads of up to `columns` numbers: warpgroups that compute; keys a tile; tiles of K, and of V, in flight or in
// use; blocks of a multiprocessor.
template <int columns, int warpgroups, int keys, int stages, int blocks>
struct HopperTiles {
  static constexpr int kColumns = columns, kWarpgroups = warpgroups, kQueries = warpgroups * kWarpgroupRows;
  static constexpr int kKeys = keys, kStages = stages, kBlocks = blocks;
};

template <int columns>
struct WgmmaForward;
template <>
struct WgmmaForward<64> : HopperTiles<64, 2, 96, 3, 2> {};
template <>
struct WgmmaForward<128> : HopperTiles<128, 3, 128, 2, 1> {};
template <>
struct WgmmaForward<256> : HopperTiles<256, 2, 64, 2, 1> {};

template <int columns>
struct WsForward;
template <>
struct WsForward<64> : HopperTiles<64, 3, 128, 4, 1> {};
template <>
struct WsForward<128> : HopperTiles<128, 3, 128, 2, 1> {};
template <>
struct WsForward<256> : HopperTiles<256, 2, 80, 2, 1> {};

template <int columns>
struct OverlapForward;
template <>
struct OverlapForward<64> : HopperTiles<64, 3, 128, 4, 1> {};
template <>
struct OverlapForward<128> : HopperTiles<128, 2, 128, 2, 1> {};
template <>
struct OverlapForward<256> : HopperTiles<256, 2, 80, 2, 1> {};

// For blocks that compute many query tiles: places for queries, 2 where the next are to arrive before the last use of
// those before; whether a softmax runs beside the product before, which needs registers for scores and weights at
// once; whether the steps within a query tile are a loop of their own; and, without overlap, whether a warpgroup takes
// half a key tile where it sees nothing of the other.
template <int columns, int warpgroups, int keys, int stages, int q_stages, bool overlaps = true, bool inner = false,
          bool halves = false>
struct PersistentTiles : HopperTiles<columns, warpgroups, keys, stages, 1> {
  static constexpr int kQStages = q_stages;
  static constexpr bool kOverlaps = overlaps, kInner = inner, kHalves = halves;
  static_assert(!overlaps || !halves);
};

// Of tiled-hopper: the tiles whose steps take least, those that compute fewer scores that nobody needs, and how many
// times as many the quicker steps make up. At head dim 64 a softmax beside the product before is worth 6 to 11 % of the
// time. Without it ("apart") a warpgroup passes over key tiles in which its own 64 queries see nothing, as past the end
// of 512 or 1024 and at the diagonal; and tiles of 64 keys leave the registers for a fourth warpgroup. At 128 three
// warpgroups, which leave no registers for the overlap, are ahead of two that have it.
template <int columns>
struct HopperForward;
template <>
struct HopperForward<64> {
  using Quick = PersistentTiles<64, 3, 128, 4, 2, true, true>;
  using Sparing = PersistentTiles<64, 4, 64, 8, 2, false>;
  static constexpr double kMostNeedless = 1.06;
};
template <>
struct HopperForward<128> {
  using Quick = PersistentTiles<128, 3, 128, 2, 2, false, false, true>;
  using Sparing = PersistentTiles<128, 3, 64, 4, 2, false>;
  static constexpr double kMostNeedless = 1.07;
};
template <>
struct HopperForward<256> {
  using Quick = PersistentTiles<256, 2, 80, 2, 1>;
  using Sparing = Quick;
};

}  // namespace attn
