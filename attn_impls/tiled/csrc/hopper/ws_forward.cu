// tiled-ws: a warp that copies, warpgroups that compute.
//
// What:  the first warpgroup only asks for copies, as far ahead as the rings have places, and gives its registers to
// the
//        others, which hold more of the output and of the scores in return. The others compute as in tiled-wgmma.
// Why:   no computing thread waits on behalf of another. Warpgroups drift apart until one takes exponentials while
//        another keeps the tensor cores busy.
// Limit: that they drift is left to chance, and what a warpgroup waits for itself, its softmax between two products,
//        stays in the open.
#include <torch/csrc/stable/library.h>

#include "forward_launch.h"

namespace attn {
namespace {

// Registers a thread after the trade. 65536 registers are shared out in eights to all threads of the block.
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

template <typename T, typename Tiles>
__global__ void __launch_bounds__((Tiles::kWarpgroups + 1) * kWarpgroup, 1)
    ws_forward_kernel(const __grid_constant__ HopperForwardParams p) {
  using Block = ForwardBlock<Tiles>;
  using Shares = Registers<Tiles::kWarpgroups>;
  const Block block(p);
  block.make_barriers();
  const int group = warpgroup();
  if (group == 0) {
    shrink_registers<Shares::kCopying>();
    if (threadIdx.x == 0) {
      block.load_q();
      typename Block::Turn next;
      for (int tile = block.tiles.last - 1; tile >= block.tiles.first; --tile, next.advance()) {
        block.load_k(tile, next);
        block.load_v(tile, next);
      }
    }
  } else {
    grow_registers<Shares::kComputing>();
    block.template attend<T>(group - 1, [](int) {});
  }
}

std::tuple<Tensor, Tensor> ws_forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int64_t low,
                                      int64_t high) {
  return hopper_forward<WsForward>(q, k, v, scale, low, high, kWarpgroup, [](auto element, auto tiles) {
    return ws_forward_kernel<decltype(element), decltype(tiles)>;
  });
}

}  // namespace
}  // namespace attn

STABLE_TORCH_LIBRARY_FRAGMENT(attn_tiled, library) {
  library.def("ws_forward(Tensor q, Tensor k, Tensor v, float scale, int low, int high) -> (Tensor out, Tensor lse)");
}

STABLE_TORCH_LIBRARY_IMPL(attn_tiled, CUDA, library) {
  library.impl("ws_forward", TORCH_BOX(&attn::ws_forward));
}
