// The forward kernel of tiled-async; async_forward.cu opens with what it does and why.
#pragma once

#include "async_tiles.h"
#include "fragment_softmax.h"
#include "launch.h"
#include "params.h"
#include "query_tile.h"
#include "shared_tile.h"
#include "tile_mask.h"

namespace attn {

// Shared memory: Q [kQueries], then for each stage K [kKeys] and V [kKeys].
template <typename Tiles>
constexpr int kAsyncForwardBytes =
    (Tiles::kQueries + 2 * Tiles::kStages * Tiles::kKeys) * Swizzled<Tiles::kColumns>::kRowBytes;

template <typename T, typename Tiles>
__global__ void __launch_bounds__(Tiles::kWarps* kWarp, Tiles::kBlocks) async_forward_kernel(ForwardParams<T> p) {
  constexpr int columns = Tiles::kColumns;
  using Layout = Swizzled<columns>;
  static_assert(Tiles::kStages >= 2);
  constexpr int kThreads = Tiles::kWarps * kWarp, kKeys = Tiles::kKeys, kStages = Tiles::kStages;
  constexpr int kTileBytes = kKeys * Layout::kRowBytes;
  const uint32_t q_tile = shared_memory_start();
  const uint32_t stages = q_tile + Tiles::kQueries * Layout::kRowBytes;
  const int head_dim = static_cast<int>(p.shape.head_dim), kv_len = static_cast<int>(p.shape.kv_len);
  const int warp_row = threadIdx.x / kWarp * Tiles::kWarpRows;
  const auto [batch, head, kv_head, q0, q1] = QueryTile::of_block(p.shape, Tiles::kQueries);

  // Tiles of keys are visited from the last to the first: the copy of visit i starts kStages - 1 visits ahead of its
  // use.
  const TileBand band = TileBand::of(p.band);
  const TileRange tiles = key_tiles(band, q0, q1, kv_len, kKeys);
  const TileRange plain = plain_key_tiles(band, q0, q1, kv_len, kKeys);
  const int visits = tiles.last - tiles.first;
  const auto start_copies = [&](int visit) {
    if (visit < visits) {
      const int k0 = (tiles.last - 1 - visit) * kKeys;
      const uint32_t k_tile = stages + visit % kStages * (2 * kTileBytes);
      start_tile_copy<Layout, kKeys, kThreads>(k_tile, p.k.row(batch, kv_head, k0), p.k.row_stride, kv_len - k0,
                                               head_dim);
      start_tile_copy<Layout, kKeys, kThreads>(k_tile + kTileBytes, p.v.row(batch, kv_head, k0), p.v.row_stride,
                                               kv_len - k0, head_dim);
    }
    commit_copies();  // an empty group where there is nothing to copy, so that the number of groups stays in step
  };
  start_tile_copy<Layout, Tiles::kQueries, kThreads>(q_tile, p.q.row(batch, head, q0), p.q.row_stride, q1 - q0,
                                                     head_dim);
#pragma unroll
  for (int visit = 0; visit < kStages - 1; ++visit) start_copies(visit);

  FragmentSoftmax<Tiles::kRowPieces> softmax;
  softmax.clear();
  Accumulator<Tiles::kRowPieces, columns / kChunk> out;
  out.clear();

  for (int visit = 0; visit < visits; ++visit) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // the copies of all threads are there, and all are done with the stage that is filled next
    const uint32_t k_tile = stages + visit % kStages * (2 * kTileBytes);
    const int tile = tiles.last - 1 - visit;

    Accumulator<Tiles::kRowPieces, kKeys / kChunk> scores;
    scores.clear();
    add_product<T, columns / kPiece>(scores, AlongDepth<Layout>::left(q_tile, warp_row),
                                     AlongDepth<Layout>::right(k_tile, 0));
    if (!plain.has(tile)) hide_scores(scores, TileMask::of(band, q0, tile * kKeys, kv_len), warp_row, 0);
    softmax.take(scores, out, p.scale_log2);
    start_copies(visit + kStages - 1);  // only now, because the scores leave no registers for addresses
    add_product<T, kKeys / kPiece>(out, Held<Tiles::kRowPieces, kKeys / kPiece>::template rounded<T>(scores),
                                   AcrossDepth<Layout>::right(k_tile + kTileBytes, 0));
  }

  float inverse[Tiles::kRowPieces][2], log_sum_exp[Tiles::kRowPieces][2];
  softmax.finish(inverse, log_sum_exp, p.scale_log2);
  store_row_numbers(log_sum_exp, p.lse + (batch * p.shape.heads + head) * p.shape.q_len, q0 + warp_row, q1);
  // The output goes through the warp's own rows of the Q tile, so that whole rows are written to global memory.
  wait_for_copies<0>();  // where there was no tile of keys, Q may still be on its way
  __syncthreads();
  store_rounded<T, Layout>(out, inverse, q_tile, warp_row);
  __syncwarp();
  store_warp_rows<Layout, Tiles::kWarpRows>(q_tile + warp_row * Layout::kRowBytes,
                                            p.out.row(batch, head, q0 + warp_row), p.out.row_stride, q1 - q0 - warp_row,
                                            head_dim);
}

// `on` is a tensor of the device to run on.
template <typename T, typename Tiles>
void launch_async_forward(const Tensor& on, const ForwardParams<T>& params) {
  const int64_t tiles = (params.shape.q_len + Tiles::kQueries - 1) / Tiles::kQueries;
  launch(on, params.shape.batch * params.shape.heads * tiles, dim3(Tiles::kWarps * kWarp), kAsyncForwardBytes<Tiles>,
         async_forward_kernel<T, Tiles>, params);
}

}  // namespace attn
