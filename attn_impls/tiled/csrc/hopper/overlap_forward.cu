// tiled-overlap: the softmax of one tile under the product of the tile before.
//
// What:  as tiled-ws, but a warpgroup starts the scores of the next tile and the product of the last weights with their
//        values together, and takes the exponentials of the former while the tensor cores are at the latter.
// Why:   exponentials take as long as the products at head dim 64 and half as long at 128, and in tiled-ws they leave a
//        warpgroup's share of the tensor cores idle unless another warpgroup happens to use it.
// Limit: scores and weights are held at the same time, so that two warpgroups share the registers at head dim 128 where
//        tiled-ws has three; a tile of keys is read from shared memory for 128 queries.
#include "../cuda/register_forward.h"
#include "forward_launch.h"
#include "forward_rows.h"
#include "roles.h"

namespace attn {
namespace {

template <typename T, typename Tiles>
__global__ void __launch_bounds__(kSpecialisedThreads<Tiles>, 1)
    overlap_forward_kernel(const __grid_constant__ HopperForwardParams p) {
  const ForwardBlock<Tiles> block(p);
  block.make_barriers();
  copy_and_compute(block, [&](int group) { ForwardRows<T, Tiles>(block, group).attend_overlapped(); });
}

std::tuple<Tensor, Tensor> overlap_forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int64_t low,
                                           int64_t high) {
  return run_rung_forward<OverlapForward>(q, k, v, scale, low, high, kWarpgroup, [](auto element, auto tiles) {
    return overlap_forward_kernel<decltype(element), decltype(tiles)>;
  });
}

}  // namespace
}  // namespace attn

ATTN_FORWARD_OP(overlap_forward)
