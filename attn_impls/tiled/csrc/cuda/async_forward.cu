// tiled-async, forward: the copy of the next tile overlaps the use of this one.
//
// What:  cp.async copies tiles of K and V from global to shared memory past the registers, while the tensor cores work
//        on the tiles that came before; a warp waits only for copies that were started one visit ago. Tiles are
//        swizzled instead of padded. 4 warps own 128 queries, 32 a warp. One barrier a tile. The mask is applied only
//        in tiles that the edge of the band or the end of the keys crosses, and hidden tiles are not visited at all.
// Why:   tiled-mma waits for memory between any two products, and reads each key from shared memory for only 16 queries
//        a warp. With 32, a fragment of K or V feeds four products, and reading keeps up with multiplying.
// Limit: mma.sync itself. Its operands pass through the registers of each warp, which an H100's wgmma spares: there it
//        reaches 63 % of the tensor cores' peak (Luo et al., arXiv:2402.13499). The exponentials take their turn with
//        the products unless the other block of the multiprocessor fills the gap.
#include <cmath>
#include <tuple>

#include "async_forward.h"
#include "register_forward.h"
#include "tensor_core_arguments.h"

namespace attn {
namespace {

std::tuple<Tensor, Tensor> async_forward(const Tensor& q_given, const Tensor& k_given, const Tensor& v_given,
                                         double scale, int64_t low, int64_t high) {
  const Shape shape = check_inputs(q_given, k_given, v_given, scale);
  check_tensor_core_inputs(q_given, k_given);
  const Tensor q = with_aligned_rows(q_given), k = with_aligned_rows(k_given), v = with_aligned_rows(v_given);
  Tensor out = empty_in_order_of(q_given);
  Tensor lse = empty_lse(q_given);
  with_half_type(q, [&](auto element) {
    using T = decltype(element);
    const ForwardParams<T> params{shape,
                                  view_of<const T>(q),
                                  view_of<const T>(k),
                                  view_of<const T>(v),
                                  view_of<T>(out),
                                  static_cast<float*>(lse.data_ptr()),
                                  static_cast<float>(scale * M_LOG2E),
                                  Band::from_diagonals(low, high)};
    with_tile_columns(shape.head_dim, [&](auto constant) {
      launch_async_forward<T, AsyncForward<decltype(constant)::kValue>>(q, params);
    });
  });
  return {out, lse};
}

}  // namespace
}  // namespace attn

ATTN_FORWARD_OP(async_forward)
