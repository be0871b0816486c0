// Specialisation: the first warpgroup copies, the others compute with the registers that it gives back.
#pragma once

#include "forward_block.h"

namespace attn {

// Registers a thread after the trade. The block's registers were shared out in eights to all its threads alike; these
// take no more of the multiprocessor's 65536.
template <int warpgroups>
struct Registers;
template <>
struct Registers<2> {
  static constexpr int kCopying = 24, kComputing = 240;
};
template <>
struct Registers<3> {
  static constexpr int kCopying = 32, kComputing = 160;
};

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
