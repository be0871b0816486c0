// tiled-ws: a warp that copies, warpgroups that compute.
//
// What:  the first warpgroup only asks for copies, as far ahead as the rings have places, and gives its registers to
//        the others, which hold more of the output and of the scores in return. The others compute as in tiled-wgmma.
// Why:   no computing thread waits on behalf of another. Warpgroups drift apart until one takes exponentials while
//        another keeps the tensor cores busy.
// Limit: that they drift is left to chance, and what a warpgroup waits for itself, its softmax between two products,
//        stays in the open.
#include "../cuda/register_forward.h"
#include "forward_launch.h"
#include "forward_rows.h"
#include "roles.h"

namespace attn {
namespace {

template <typename T, typename Tiles>
__global__ void __launch_bounds__(kSpecialisedThreads<Tiles>, 1)
    ws_forward_kernel(const __grid_constant__ HopperForwardParams p) {
  const ForwardBlock<Tiles> block(p);
  block.make_barriers();
  copy_and_compute(block, [&](int group) { ForwardRows<T, Tiles>(block, group).attend_in_turn([](int) {}); });
}

std::tuple<Tensor, Tensor> ws_forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int64_t low,
                                      int64_t high) {
  return run_rung_forward<WsForward>(q, k, v, scale, low, high, kWarpgroup, [](auto element, auto tiles) {
    return ws_forward_kernel<decltype(element), decltype(tiles)>;
  });
}

}  // namespace
}  // namespace attn

ATTN_FORWARD_OP(ws_forward)
