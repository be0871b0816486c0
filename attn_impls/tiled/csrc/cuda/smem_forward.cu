// tiled-smem: tiles in shared memory, FlashAttention's first idea.
//
// What:  against tiled-global, tiles of 32 queries, 32 keys and 32 values are copied to shared memory, and read there.
// Why:   a block reads every number of K and V from global memory once, not once for each of its 32 queries.
// Limit: shared memory. The lanes of a warp read one column of the K tile, whose rows are head_dim floats apart: for
//        head_dim 32, 64, 96 or 128 all 32 lie in one bank, so the read takes 32 turns, as many as the 32 sectors of
//        global memory took. Next: rows that are not a multiple of 32 banks apart.
#include "forward_op.h"
#include "shared_tiles.h"

namespace attn {
namespace {

struct Packed {
  ATTN_HOST_DEVICE static constexpr int64_t of(int64_t head_dim) { return head_dim; }
};

template <typename T>
using Tiles = SharedTiles<T, CopyRowByLane, Packed>;

template <typename T>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerSm) smem_forward_kernel(ForwardParams<T> p) {
  one_warp_a_query<Tiles<T>>(p);
}

std::tuple<Tensor, Tensor> smem_forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int64_t low,
                                        int64_t high) {
  return forward(q, k, v, scale, low, high, [&]<typename T>(const ForwardParams<T>& p) {
    launch(q, QueryBlock::count(p.shape, kTile), dim3(kWarp, kTile), Tiles<T>::bytes(p.shape.head_dim),
           smem_forward_kernel<T>, p);
  });
}

}  // namespace
}  // namespace attn

ATTN_FORWARD_OP(smem_forward)
