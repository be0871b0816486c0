// tiled-async, forward: the copy of the next tile overlaps the use of this one.
//
// What:  cp.async copies tiles of K and V from global to shared memory past the registers, while the tensor cores work
//        on the tile before; a warp waits only for copies that were started one visit ago. Tiles are swizzled instead
//        of padded. 4 warps own 128 queries, 32 a warp. One barrier a tile. Scores become weights 16 keys at a time,
//        between the products with V. The mask is applied only in tiles that the edge of the band or the end of the
//        keys crosses for a warp, and tiles, or parts of them, that it hides are not computed.
// Why:   tiled-mma waits for memory between any two products, and reads each key from shared memory for only 16 queries
//        a warp. With 32, a fragment of K or V feeds four products, and reading keeps up with multiplying. An
//        exponential occupies its unit for 8 cycles a warp: between products, that time is not lost.
// Limit: mma.sync itself. Its operands pass through the registers of each warp, which an H100's wgmma spares: there it
//        reaches 63 % of the tensor cores' peak (Luo et al., arXiv:2402.13499).
#include <tuple>

#include "async_forward.h"
#include "register_forward.h"
#include "tensor_core_arguments.h"

namespace attn {
namespace {

std::tuple<Tensor, Tensor> async_forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int64_t low,
                                         int64_t high) {
  const auto start = []<typename T>(const Tensor& q, const ForwardParams<T>& params) {
    with_tile_columns(params.shape.head_dim, [&](auto columns) {
      launch_async_forward<T, AsyncForward<decltype(columns)::kValue>>(q, params);
    });
  };
  return tensor_core_forward(q, k, v, scale, low, high, start);
}

}  // namespace
}  // namespace attn

ATTN_FORWARD_OP(async_forward)
