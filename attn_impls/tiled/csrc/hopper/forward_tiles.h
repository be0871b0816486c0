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

}  // namespace attn
