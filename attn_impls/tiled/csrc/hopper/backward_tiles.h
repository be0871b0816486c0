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
// tile's scores beside dQ; whether blocks of a head begin at different tiles, so as not to add to the same dQ at a
// time; whether a block stays and takes up other keys when it is done with its own; whether a kernel's blocks are
// started while the kernel before it ends; how many bytes of dQ's sums the three kernels have before they start anew
// with the batches that follow, which fit the L2 cache then, or 0 for all.
template <int columns, int warpgroups, int queries, int stages, bool registers_to_spare, bool staggered = false,
          bool stays = false, bool early = false, int64_t bytes_at_a_time = 0>
struct HopperKeyTiles {
  static constexpr int kColumns = columns, kWarpgroups = warpgroups, kKeys = warpgroups * kWarpgroupRows;
  static constexpr int kQueries = queries, kStages = stages;
  static constexpr bool kRegistersToSpare = registers_to_spare, kStaggered = staggered;
  static constexpr bool kStays = stays, kEarly = early;
  static constexpr int64_t kBytesAtATime = bytes_at_a_time;
};

constexpr int kMostHopperBackwardColumns = 128;  // 64 keys of dK and dV, wider, are more than a warpgroup's registers

template <int columns>
struct WsBackward;
template <>
struct WsBackward<64> : HopperKeyTiles<64, 2, 128, 2, true, false, true> {};
template <>
struct WsBackward<128> : HopperKeyTiles<128, 2, 64, 2, false, false, true> {};

}  // namespace attn
