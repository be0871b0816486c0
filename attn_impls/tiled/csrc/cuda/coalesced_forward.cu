// tiled-coalesced: whole sectors of global memory.
//
// What:  against tiled-pad, a tile is copied by rows: warp i copies row i, lane j its numbers j, j + 32, ...
// Why:   the 32 lanes of a load then ask for 128 neighbouring bytes (fp32), 4 sectors where it was 32, all of which
//        the load uses.
// Limit: the loops. head_dim and the number of keys are known at run time only, so each multiply-add pays for a share
//        of counting, comparing and address arithmetic. Next: bounds that the compiler knows.
#include "forward_op.h"
#include "shared_tiles.h"
#include "stride.h"

namespace attn {
namespace {

template <typename T>
using Tiles = SharedTiles<T, CopyRowByWarp, OddStride>;

template <typename T>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerSm) coalesced_forward_kernel(ForwardParams<T> p) {
  one_warp_a_query<Tiles<T>>(p);
}

std::tuple<Tensor, Tensor> coalesced_forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                                             int64_t low, int64_t high) {
  return forward(q, k, v, scale, low, high, [&]<typename T>(const ForwardParams<T>& p) {
    launch(q, QueryBlock::count(p.shape, kTile), dim3(kWarp, kTile), Tiles<T>::bytes(p.shape.head_dim),
           coalesced_forward_kernel<T>, p);
  });
}

}  // namespace
}  // namespace attn

ATTN_FORWARD_OP(coalesced_forward)
