// Specialisation: the first warpgroup copies, the others compute with the registers that it gives back.
#pragma once

#include "forward_block.h"

namespace attn {

// Registers a thread after the trade. A multiprocessor's 65536 were shared out in eights to all threads of the block
// alike; warps that ask for more than were given back would wait for ever.
template <int warpgroups, int copying, int computing>
struct Trade {
  static constexpr int kCopying = copying, kComputing = computing;
  static constexpr int kBefore = 65536 / ((warpgroups + 1) * kWarpgroup) / 8 * 8;
  static_assert(copying % 8 == 0 && computing % 8 == 0 && copying >= 24 && computing <= 256, "setmaxnreg takes these");
  static_assert(copying <= kBefore && computing >= kBefore, "some give and some take");
  static_assert(copying + warpgroups * computing <= (warpgroups + 1) * kBefore, "more are taken than given");
};
template <int warpgroups>
struct Registers;
template <>
struct Registers<2> : Trade<2, 24, 240> {};
template <>
struct Registers<3> : Trade<3, 32, 160> {};
template <>
struct Registers<4> : Trade<4, 32, 112> {};

template <typename Tiles>
constexpr int kSpecialisedThreads = (Tiles::kWarpgroups + 1) * kWarpgroup;

// compute(group) is called by the warpgroups that compute, counted from 0.
template <typename Tiles, typename Compute>
__device__ __forceinline__ void copy_and_compute(const ForwardBlock<Tiles>& block, const Compute& compute) {
  using Shares = Registers<Tiles::kWarpgroups>;
  const int group = warpgroup();
  if (group == 0) {
    shrink_registers<Shares::kCopying>();
    if (threadIdx.x == 0) {
      block.load_q();
      typename ForwardBlock<Tiles>::Turn next;
      for (int tile = block.tiles.last - 1; tile >= block.tiles.first; --tile, next.advance()) {
        block.load_k(tile, next);
        block.load_v(tile, next);
      }
    }
  } else {
    grow_registers<Shares::kComputing>();
    compute(group - 1);
  }
}

}  // namespace attn
