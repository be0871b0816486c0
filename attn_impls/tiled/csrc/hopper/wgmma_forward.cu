// tiled-wgmma: Hopper's tensor cores and TMA, each warpgroup doing everything.
//
// What:  wgmma multiplies for four warps at a time and reads its operands from shared memory by itself; only weights
//        and sums pass through registers. One thread asks TMA for whole tiles, which come swizzled as wgmma
//        reads them, and mbarriers tell when a tile has arrived and when all warps are done with it. A block owns 64
//        queries a warpgroup.
// Why:   mma.sync reaches 63 % of an H100's tensor cores (Luo et al., arXiv:2402.13499), and the warps of tiled-async
//        spend their instructions on loading fragments and computing addresses.
// Limit: within a warpgroup, tensor cores and exponentials take turns, and the thread that asks for copies is one of
//        those that compute: it waits for the slowest warpgroup before it may refill a place, and its own products wait
//        for it.
#include "../cuda/register_forward.h"
#include "forward_launch.h"
#include "forward_rows.h"

namespace attn {
namespace {

template <typename T, typename Tiles>
__global__ void __launch_bounds__(Tiles::kWarpgroups* kWarpgroup, Tiles::kBlocks)
    wgmma_forward_kernel(const __grid_constant__ HopperForwardParams p) {
  using Block = ForwardBlock<Tiles>;
  const Block block(p);
  block.make_barriers();
  const bool copies = threadIdx.x == 0;
  typename Block::Turn next;  // place to fill
  const auto load = [&](int tile) {
    if (tile < block.tiles.first) return;
    block.load_k(tile, next);
    block.load_v(tile, next);
    next.advance();
  };
  if (copies) {
    block.load_q();
    for (int i = 1; i <= Tiles::kStages; ++i) load(block.tiles.last - i);
  }
  __syncwarp();
  // While the scores of a tile are computed, the places of the tile before are filled again.
  ForwardRows<T, Tiles>(block, warpgroup()).attend_in_turn([&](int tile) {
    if (copies && tile + 1 < block.tiles.last) load(tile + 1 - Tiles::kStages);
    __syncwarp();
  });
}

std::tuple<Tensor, Tensor> wgmma_forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int64_t low,
                                         int64_t high) {
  return run_rung_forward<WgmmaForward>(q, k, v, scale, low, high, 0, [](auto element, auto tiles) {
    return wgmma_forward_kernel<decltype(element), decltype(tiles)>;
  });
}

}  // namespace
}  // namespace attn

ATTN_FORWARD_OP(wgmma_forward)
