// The tile sizes of the Hopper backward for each width of tile: the one place to tune.
//
// A warpgroup owns 64 keys. Bounds: a thread needs columns registers for dK and dV, queries for the scores and the
// gradient of the weights, and about 45 more, of the 240 that two warpgroups can have; the share of dQ takes the place
// of the scores. 227 KB of shared memory.
#pragma once

#include "forward_tiles.h"

namespace attn {

// For heads of up to `columns` numbers: warpgroups that compute; queries a tile; tiles of Q, and of dO, in flight or in
// use; whether the registers suffice for K and V, which are read from shared memory less often then, and for the next
// tile's scores beside dQ.
template <int columns, int warpgroups, int queries, int stages, bool registers_to_spare>
struct HopperKeyTiles {
  static constexpr int kColumns = columns, kWarpgroups = warpgroups, kKeys = warpgroups * kWarpgroupRows;
  static constexpr int kQueries = queries, kStages = stages;
  static constexpr bool kRegistersToSpare = registers_to_spare;
};

constexpr int kMostHopperBackwardColumns = 128;  // 64 keys of dK and dV, wider, are more than a warpgroup's registers

template <int columns>
struct WsBackward;
template <>
struct WsBackward<64> : HopperKeyTiles<64, 2, 128, 2, true> {};
template <>
struct WsBackward<128> : HopperKeyTiles<128, 2, 64, 2, false> {};

}  // namespace attn
