// tiled-pad: no bank conflicts.
//
// What:  against tiled-smem, the rows of the K and the V tile are an odd number of floats apart: head_dim + 1 where
//        head_dim is even. Each tile is 32 floats larger, and nothing else changes.
// Why:   lane j reads number d of row j of K. With an odd distance the 32 lanes fall into 32 different banks, and the
//        read takes one turn in place of up to 32; so do the writes of the copy, where lane j holds row j of K or V.
//        The other reads are free of conflicts as they are: all lanes read the same number of Q, and neighbouring
//        numbers of V. Only the copy of Q, once a block, still meets in a bank.
// Limit: the copy. Lane j reads row j of global memory, so that one load of a warp touches 32 sectors of 32 bytes for
//        128 bytes (fp32) that it wants. Next: neighbouring lanes read neighbouring numbers.
#include "forward_op.h"
#include "shared_tiles.h"
#include "stride.h"

namespace attn {
namespace {

template <typename T>
using Tiles = SharedTiles<T, CopyRowByLane, OddStride>;

template <typename T>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerSm) pad_forward_kernel(ForwardParams<T> p) {
  one_warp_a_query<Tiles<T>>(p);
}

std::tuple<Tensor, Tensor> pad_forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int64_t low,
                                       int64_t high) {
  return forward(q, k, v, scale, low, high, [&]<typename T>(const ForwardParams<T>& p) {
    launch(q, QueryBlock::count(p.shape, kTile), dim3(kWarp, kTile), Tiles<T>::bytes(p.shape.head_dim),
           pad_forward_kernel<T>, p);
  });
}

}  // namespace
}  // namespace attn

ATTN_FORWARD_OP(pad_forward)
