// tiled-mma: tensor cores, and weights that stay in registers.
//
// What:  4 warps own 64 queries of one head, 16 queries a warp. Tiles of K and V pass through shared memory as 16-bit
//        numbers; ldmatrix brings them to the registers in the layout that mma.sync multiplies. The scores come out of
//        the first product as C fragments, become weights in place, and, rounded to 16 bits, are the A fragments of the
//        second product. Rows of the tiles are padded by 16 bytes against bank conflicts.
// Why:   an H100's tensor cores do about 15 times as much arithmetic on 16-bit numbers as its other units do on fp32;
//        one instruction multiplies 16 x 16 by 16 x 8 numbers.
// Limit: waiting. A tile is loaded, then used, then the next is loaded: the tensor cores stand still while memory
//        answers. 16 queries a warp read every key from shared memory for only 16 rows of result. The next rung copies
//        ahead of its use and gives a warp 32 queries.
#include <cmath>
#include <tuple>

#include "fragment_softmax.h"
#include "params.h"
#include "query_tile.h"
#include "register_forward.h"
#include "tensor_core_arguments.h"
#include "tile_mask.h"

namespace attn {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp, kQueries = kWarps * kPiece;

template <int columns>
constexpr int kKeys = columns <= 128 ? 64 : 32;  // fewer for wide heads, so that the output still fits the registers

template <typename T, int columns>
__global__ void __launch_bounds__(kThreads, 1) mma_forward_kernel(ForwardParams<T> p) {
  using Layout = Padded<columns>;
  constexpr int keys = kKeys<columns>;
  const uint32_t q_tile = shared_memory_start();
  const uint32_t k_tile = q_tile + kQueries * Layout::kRowBytes;
  const uint32_t v_tile = k_tile + keys * Layout::kRowBytes;
  const int head_dim = static_cast<int>(p.shape.head_dim), kv_len = static_cast<int>(p.shape.kv_len);
  const int warp_row = threadIdx.x / kWarp * kPiece;
  const auto [batch, head, kv_head, q0, q1] = QueryTile::of_block(p.shape, kQueries);

  copy_tile<Layout, kQueries, kThreads>(q_tile, p.q.row(batch, head, q0), p.q.row_stride, q1 - q0, head_dim);
  FragmentSoftmax<1> softmax;
  softmax.clear();
  Accumulator<1, columns / kChunk> out;
  out.clear();

  const TileBand band = TileBand::of(p.band);
  const TileRange tiles = key_tiles(band, q0, q1, kv_len, keys);
  const TileRange plain = plain_key_tiles(band, q0, q1, kv_len, keys);
  for (int tile = tiles.first; tile < tiles.last; ++tile) {
    const int k0 = tile * keys;
    __syncthreads();  // every warp is done with the tiles before
    copy_tile<Layout, keys, kThreads>(k_tile, p.k.row(batch, kv_head, k0), p.k.row_stride, kv_len - k0, head_dim);
    copy_tile<Layout, keys, kThreads>(v_tile, p.v.row(batch, kv_head, k0), p.v.row_stride, kv_len - k0, head_dim);
    __syncthreads();

    Accumulator<1, keys / kChunk> scores;
    scores.clear();
    add_product<T, columns / kPiece>(scores, AlongDepth<Layout>::left(q_tile, warp_row),
                                     AlongDepth<Layout>::right(k_tile, 0));
    if (!plain.has(tile)) hide_scores(scores, TileMask::of(band, q0, k0, kv_len), warp_row, 0);
    softmax.take(scores, out, p.scale_log2);
    add_product<T, keys / kPiece>(out, Held<1, keys / kPiece>::template rounded<T>(scores),
                                  AcrossDepth<Layout>::right(v_tile, 0));
  }

  float inverse[1][2], log_sum_exp[1][2];
  softmax.finish(inverse, log_sum_exp, p.scale_log2);
  store_row_numbers(log_sum_exp, p.lse + (batch * p.shape.heads + head) * p.shape.q_len, q0 + warp_row, q1);
  __syncthreads();  // q_tile is written by all warps, and there may have been no tile of keys to wait for it
  store_rounded<T, Layout>(out, inverse, q_tile, warp_row);
  __syncwarp();
  store_warp_rows<Layout, kPiece>(q_tile + warp_row * Layout::kRowBytes, p.out.row(batch, head, q0 + warp_row),
                                  p.out.row_stride, q1 - q0 - warp_row, head_dim);
}

std::tuple<Tensor, Tensor> mma_forward(const Tensor& q_given, const Tensor& k_given, const Tensor& v_given,
                                       double scale, int64_t low, int64_t high) {
  const Shape shape = check_inputs(q_given, k_given, v_given, scale);
  check_tensor_core_inputs(q_given, k_given);
  const Tensor q = with_aligned_rows(q_given), k = with_aligned_rows(k_given), v = with_aligned_rows(v_given);
  Tensor out = empty_in_order_of(q_given);
  Tensor lse = empty_lse(q_given);
  const int64_t tiles = (shape.q_len + kQueries - 1) / kQueries;
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
      constexpr int columns = decltype(constant)::kValue;
      const int64_t shared_bytes = (kQueries + 2 * kKeys<columns>)*Padded<columns>::kRowBytes;
      launch(q, shape.batch * shape.heads * tiles, dim3(kThreads), shared_bytes, mma_forward_kernel<T, columns>,
             params);
    });
  });
  return {out, lse};
}

}  // namespace
}  // namespace attn

ATTN_FORWARD_OP(mma_forward)
