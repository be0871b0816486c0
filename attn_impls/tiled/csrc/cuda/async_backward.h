// The backward kernels of tiled-async; async_backward.cu opens with what they do and why.
#pragma once

#include "async_tiles.h"
#include "backward_rows.h"
#include "fragment_softmax.h"
#include "query_tile.h"
#include "shared_tile.h"
#include "tile_mask.h"

namespace attn {

template <typename T>
__global__ void __launch_bounds__(kElementwiseThreads) async_backward_prepare_kernel(BackwardParams<T> p) {
  prepare_rows(p, static_cast<int>(blockIdx.x));
}
template <typename T, int columns>
__global__ void __launch_bounds__(kElementwiseThreads) async_backward_convert_kernel(BackwardParams<T> p) {
  convert_dq<T, columns>(p, static_cast<int>(blockIdx.x));
}

// What one pass over the scores computes.
constexpr int kDv = 1, kDk = 2, kDq = 4;

// Shared memory: K [kKeys], V [kKeys] unless only dV is asked for, then twice Q, dO [kQueries], lse_log2 and delta, and
// dS [kKeys, kQueries].
template <typename Blocks, int parts>
struct KeyBlockMemory {
  using Layout = Swizzled<Blocks::kColumns>;
  using DsLayout = Swizzled<Blocks::kQueries>;
  static constexpr int kStages = 2;
  static constexpr bool kNeedsDs = (parts & (kDk | kDq)) != 0;
  static constexpr int kKeyTile = Blocks::kKeys * Layout::kRowBytes, kQueryTile = Blocks::kQueries * Layout::kRowBytes;
  static constexpr int kRowNumbers = Blocks::kQueries * 4;
  static constexpr int kK = 0, kV = kNeedsDs ? kKeyTile : 0;
  static constexpr int kFirstStage = kV + kKeyTile, kStage = 2 * kQueryTile + 2 * kRowNumbers;
  static constexpr int kDs = kFirstStage + kStages * kStage;
  static constexpr int kBytes = kDs + ((parts & kDq) != 0 ? Blocks::kKeys * DsLayout::kRowBytes : 0);
};

// The copies and additions of compute capability 9.0 are done in fewer registers. Before it, held keys would be
// spilled.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr bool kRegistersSuffice = true;
#else
constexpr bool kRegistersSuffice = false;
#endif

// dK and dV of one tile of keys, and its share of every query's dQ.
template <typename T, typename Blocks, int parts>
__global__ void __launch_bounds__(Blocks::kWarps* kWarp, Blocks::kBlocks)
    async_backward_keys_kernel(BackwardParams<T> p) {
  constexpr int columns = Blocks::kColumns;
  using Memory = KeyBlockMemory<Blocks, parts>;
  using Layout = typename Memory::Layout;
  using DsLayout = typename Memory::DsLayout;
  constexpr int kThreads = Blocks::kWarps * kWarp, kKeys = Blocks::kKeys, kQueries = Blocks::kQueries;
  constexpr int kPieces = Blocks::kKeyPieces, kStep = Blocks::kStep;
  static_assert(kPaddedRows % kQueries == 0 && kQueries % kStep == 0);
  const uint32_t k_tile = shared_memory_start() + Memory::kK, v_tile = shared_memory_start() + Memory::kV;
  const uint32_t stages = shared_memory_start() + Memory::kFirstStage, ds_tile = shared_memory_start() + Memory::kDs;
  const int head_dim = static_cast<int>(p.shape.head_dim), kv_len = static_cast<int>(p.shape.kv_len);
  const int q_len = static_cast<int>(p.shape.q_len);
  const int warp = threadIdx.x / kWarp, warp_row = warp * Blocks::kWarpKeys;

  // The first tile of a head comes first: under a causal mask most queries see it.
  const int tiles = (kv_len + kKeys - 1) / kKeys, index = static_cast<int>(blockIdx.x);
  const int kv_heads = static_cast<int>(p.shape.kv_heads), group = static_cast<int>(p.shape.group());
  const int k0 = index % tiles * kKeys, kv_head = index / tiles % kv_heads, batch = index / tiles / kv_heads;
  const int k1 = k0 + kKeys < kv_len ? k0 + kKeys : kv_len;

  // All query heads of the group in turn, so that their dK and dV add up in the registers, in a fixed order.
  const TileBand band = TileBand::of(p.band);
  const TileRange range = query_tiles(band, k0, k1, q_len, kQueries);
  const TileRange plain = k0 + kKeys > kv_len ? TileRange{0, 0} : plain_query_tiles(band, k0, k1, q_len, kQueries);
  const int end = range.first < range.last ? (kv_head + 1) * group : 0;  // the first head that is not visited
  int next_head = kv_head * group, next_tile = range.first;              // of the visit whose copies start next
  const auto start_copies = [&](uint32_t stage) {
    if (next_head < end) {
      const int head = next_head, q0 = next_tile * kQueries;
      if (++next_tile == range.last) next_tile = range.first, ++next_head;
      const uint32_t q_tile = stages + stage;
      start_tile_copy<Layout, kQueries, kThreads>(q_tile, p.q.row(batch, head, q0), p.q.row_stride, q_len - q0,
                                                  head_dim);
      start_tile_copy<Layout, kQueries, kThreads>(q_tile + Memory::kQueryTile, p.dout.row(batch, head, q0),
                                                  p.dout.row_stride, q_len - q0, head_dim);
      constexpr int kCopies = Memory::kRowNumbers / 16;  // of 16 bytes each
      const int thread = thread_read_anew();
      if (thread < 2 * kCopies) {
        const float* from = thread < kCopies ? p.lse_log2 : p.delta;
        const int64_t row = (batch * p.shape.heads + head) * p.padded + q0 + thread % kCopies * 4;
        start_copy(q_tile + 2 * Memory::kQueryTile + thread * 16, from + row, true);
      }
    }
    commit_copies();
  };
  start_tile_copy<Layout, kKeys, kThreads>(k_tile, p.k.row(batch, kv_head, k0), p.k.row_stride, kv_len - k0, head_dim);
  if constexpr (Memory::kNeedsDs) {
    start_tile_copy<Layout, kKeys, kThreads>(v_tile, p.v.row(batch, kv_head, k0), p.v.row_stride, kv_len - k0,
                                             head_dim);
  }
  int head = next_head, tile = next_tile;
  start_copies(0);

  Accumulator<kPieces, columns / kChunk> dk, dv;
  dk.clear();
  dv.clear();
  wait_for_copies<0>();
  __syncthreads();
  const auto keys = left_factor < Layout, kPieces, Blocks::kHoldsKeys && kRegistersSuffice > (k_tile, warp_row);
  const auto values = left_factor < Layout, kPieces, Blocks::kHoldsValues && kRegistersSuffice > (v_tile, warp_row);

  for (uint32_t stage = 0; head < end; stage = Memory::kStage - stage) {
    start_copies(Memory::kStage - stage);
    const int q0 = tile * kQueries;
    const uint32_t q_tile = stages + stage, do_tile = q_tile + Memory::kQueryTile;
    const uint32_t row_numbers = do_tile + Memory::kQueryTile + threadIdx.x % 4 * 8;  // those of this lane's columns
    // Rows past the end of the queries have weight 0 whatever the mask says.
    const bool masked = !plain.has(tile);

#pragma unroll
    for (int first = 0; first < kQueries; first += kStep) {
      // Transposed: rows are keys, columns are queries. The weights are taken while the tensor cores compute dO V^T.
      constexpr int kTiles = kStep / kChunk;
      Accumulator<kPieces, kTiles> weights;
      weights.clear();
      add_product<T, columns / kPiece>(weights, keys, AlongDepth<Layout>::right(q_tile, first));
      if (masked) hide_scores<true>(weights, TileMask::of(band, q0, k0, kv_len), warp_row, first);
      const auto weigh = [&](int from, int to) {
#pragma unroll
        for (int n = from; n < to; ++n) {
          const float2 lse = load_shared_two_floats(row_numbers + (first + n * kChunk) * 4);
#pragma unroll
          for (int m = 0; m < kPieces; ++m) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              float& x = weights.at[m][n][i];
              x = fast_exp2(x * p.scale_log2 - (i % 2 == 0 ? lse.x : lse.y));
            }
          }
        }
      };
      Accumulator<kPieces, kTiles> ds;
      ds.clear();
      if constexpr (Memory::kNeedsDs) {
        constexpr int kDepth = columns / kPiece;
        add_product<T, kDepth>(ds, values, AlongDepth<Layout>::right(do_tile, first),
                               [&](auto piece) { weigh(piece * kTiles / kDepth, (piece + 1) * kTiles / kDepth); });
      } else {
        weigh(0, kTiles);
      }
      if constexpr ((parts & kDv) != 0) {
        add_product<T, kStep / kPiece>(dv, Held<kPieces, kStep / kPiece>::template rounded<T>(weights),
                                       AcrossDepth<Layout>::right(do_tile + first * Layout::kRowBytes, 0));
      }
      if constexpr (Memory::kNeedsDs) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const float2 delta = load_shared_two_floats(row_numbers + Memory::kRowNumbers + (first + n * kChunk) * 4);
#pragma unroll
          for (int m = 0; m < kPieces; ++m) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              float& x = ds.at[m][n][i];
              x = weights.at[m][n][i] * (x - (i % 2 == 0 ? delta.x : delta.y));
            }
          }
        }
        const auto held = Held<kPieces, kStep / kPiece>::template rounded<T>(ds);
        if constexpr ((parts & kDq) != 0) store_held<DsLayout>(held, ds_tile, warp_row, first / kChunk);
        if constexpr ((parts & kDk) != 0) {
          add_product<T, kStep / kPiece>(dk, held, AcrossDepth<Layout>::right(q_tile + first * Layout::kRowBytes, 0));
        }
      }
    }

    if constexpr ((parts & kDq) != 0) {
      __syncthreads();  // dS of all warps is there
      constexpr int kRowPieces = kQueries / kPiece / Blocks::kDqRowWarps, kColumns = Blocks::kDqColumns;
      constexpr int kWarpColumns = columns / Blocks::kDqColumnWarps;
      static_assert(kRowPieces * kPiece * Blocks::kDqRowWarps == kQueries && kWarpColumns % kColumns == 0);
      const int piece = warp % Blocks::kDqRowWarps * kRowPieces;
      const int64_t rows = (batch * p.shape.heads + head) * p.padded + q0;
#pragma unroll
      for (int first = 0; first < kWarpColumns; first += kColumns) {
        const int chunk = (warp / Blocks::kDqRowWarps * kWarpColumns + first) / kChunk;
        Accumulator<kRowPieces, kColumns / kChunk> dq;
        dq.clear();
        add_product<T, kKeys / kPiece>(dq, AcrossDepth<DsLayout>::left(ds_tile, piece * 2),
                                       AcrossDepth<Layout>::right(k_tile, chunk));
        float* to =
            p.dq_sum + (((rows / kPiece + piece) * (columns / kChunk) + chunk) * kWarp + threadIdx.x % kWarp) * 4;
#pragma unroll
        for (int m = 0; m < kRowPieces; ++m) {
#pragma unroll
          for (int n = 0; n < kColumns / kChunk; ++n) {
            add_to_global(to + (m * (columns / kChunk) + n) * (kWarp * 4), dq.at[m][n]);
          }
        }
      }
    }

    if (++tile == range.last) tile = range.first, ++head;
    wait_for_copies<0>();
    __syncthreads();  // the copies of all threads are there; all are done with this stage and with dS
  }

  // The results go through the tiles of K and V, each warp through its own rows.
  float factor[kPieces][2];
  const auto store = [&](const auto& result, float times, uint32_t tile, const View<T>& to) {
#pragma unroll
    for (int i = 0; i < kPieces * 2; ++i) factor[i / 2][i % 2] = times;
    store_rounded<T, Layout>(result, factor, tile, warp_row);
    __syncwarp();
    store_warp_rows<Layout, Blocks::kWarpKeys>(tile + warp_row * Layout::kRowBytes,
                                               to.row(batch, kv_head, k0 + warp_row), to.row_stride, k1 - k0 - warp_row,
                                               head_dim);
  };
  if constexpr ((parts & kDk) != 0) store(dk, p.scale, k_tile, p.dk);
  if constexpr ((parts & kDv) != 0) store(dv, 1.0f, v_tile, p.dv);
}

// Shared memory: Q and dO [kQueries], then for each stage K and V [kKeys].
template <typename Tiles>
constexpr int kAsyncBackwardQueriesBytes =
    2 * (Tiles::kQueries + Tiles::kStages * Tiles::kKeys) * Swizzled<Tiles::kColumns>::kRowBytes;

// dQ of one tile of queries, added up in the registers over the keys in a fixed order.
template <typename T, typename Tiles>
__global__ void __launch_bounds__(Tiles::kWarps* kWarp, Tiles::kBlocks)
    async_backward_queries_kernel(BackwardParams<T> p) {
  constexpr int columns = Tiles::kColumns;
  static_assert(Tiles::kStages == 2);
  using Layout = Swizzled<columns>;
  constexpr int kThreads = Tiles::kWarps * kWarp, kKeys = Tiles::kKeys, kQueries = Tiles::kQueries;
  constexpr int kTileBytes = kKeys * Layout::kRowBytes, kPieces = Tiles::kRowPieces;
  const uint32_t q_tile = shared_memory_start(), do_tile = q_tile + kQueries * Layout::kRowBytes;
  const uint32_t stages = do_tile + kQueries * Layout::kRowBytes;
  const int head_dim = static_cast<int>(p.shape.head_dim), kv_len = static_cast<int>(p.shape.kv_len);
  const int warp_row = threadIdx.x / kWarp * Tiles::kWarpRows;
  const auto [batch, head, kv_head, q0, q1] = QueryTile::of_block(p.shape, kQueries);
  const T* const k_rows = p.k.row(batch, kv_head, 0);
  const T* const v_rows = p.v.row(batch, kv_head, 0);

  const TileBand band = TileBand::of(p.band);
  const TileRange tiles = key_tiles(band, q0, q1, kv_len, kKeys);
  const TileRange plain = plain_key_tiles(band, q0, q1, kv_len, kKeys);
  const auto start_copies = [&](int tile) {
    if (tile < tiles.last) {
      const int k0 = tile * kKeys;
      const uint32_t k_tile = stages + tile % 2 * (2 * kTileBytes);
      start_tile_copy<Layout, kKeys, kThreads>(k_tile, k_rows + k0 * p.k.row_stride, p.k.row_stride, kv_len - k0,
                                               head_dim);
      start_tile_copy<Layout, kKeys, kThreads>(k_tile + kTileBytes, v_rows + k0 * p.v.row_stride, p.v.row_stride,
                                               kv_len - k0, head_dim);
    }
    commit_copies();
  };
  start_tile_copy<Layout, kQueries, kThreads>(q_tile, p.q.row(batch, head, q0), p.q.row_stride, q1 - q0, head_dim);
  start_tile_copy<Layout, kQueries, kThreads>(do_tile, p.dout.row(batch, head, q0), p.dout.row_stride, q1 - q0,
                                              head_dim);
  start_copies(tiles.first);

  float lse[kPieces][2], delta[kPieces][2];
  const int64_t row = (batch * p.shape.heads + head) * p.padded + q0 + warp_row + threadIdx.x % kWarp / 4;
#pragma unroll
  for (int i = 0; i < kPieces * 2; ++i) {
    lse[i / 2][i % 2] = p.lse_log2[row + i * 8];
    delta[i / 2][i % 2] = p.delta[row + i * 8];
  }
  Accumulator<kPieces, columns / kChunk> dq;
  dq.clear();

  for (int tile = tiles.first; tile < tiles.last; ++tile) {
    wait_for_copies<0>();
    __syncthreads();  // the copies of all threads are there, and all are done with the other stage
    start_copies(tile + 1);
    const int k0 = tile * kKeys;
    const uint32_t k_tile = stages + tile % 2 * (2 * kTileBytes);

    Accumulator<kPieces, kKeys / kChunk> weights, ds;
    weights.clear();
    ds.clear();
    add_product<T, columns / kPiece>(weights, AlongDepth<Layout>::left(q_tile, warp_row),
                                     AlongDepth<Layout>::right(k_tile, 0));
    add_product<T, columns / kPiece>(ds, AlongDepth<Layout>::left(do_tile, warp_row),
                                     AlongDepth<Layout>::right(k_tile + kTileBytes, 0));
    if (!plain.has(tile)) hide_scores(weights, TileMask::of(band, q0, k0, kv_len), warp_row, 0);
#pragma unroll
    for (int m = 0; m < kPieces; ++m) {
#pragma unroll
      for (int n = 0; n < kKeys / kChunk; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& x = ds.at[m][n][i];
          x = fast_exp2(weights.at[m][n][i] * p.scale_log2 - lse[m][i / 2]) * (x - delta[m][i / 2]);
        }
      }
    }
    add_product<T, kKeys / kPiece>(dq, Held<kPieces, kKeys / kPiece>::template rounded<T>(ds),
                                   AcrossDepth<Layout>::right(k_tile, 0));
  }

  wait_for_copies<0>();
  __syncthreads();
  float factor[kPieces][2];
#pragma unroll
  for (int i = 0; i < kPieces * 2; ++i) factor[i / 2][i % 2] = p.scale;
  store_rounded<T, Layout>(dq, factor, q_tile, warp_row);
  __syncwarp();
  store_warp_rows<Layout, Tiles::kWarpRows>(q_tile + warp_row * Layout::kRowBytes, p.dq.row(batch, head, q0 + warp_row),
                                            p.dq.row_stride, q1 - q0 - warp_row, head_dim);
}

}  // namespace attn
