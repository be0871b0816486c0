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

// What a block needs once a tile, or once at all, lies in shared memory, where it takes no registers: only so do the
// scores of 64 keys fit beside an output of 128 columns. Tiles of keys are numbered from the first that is visited.
template <typename T>
struct Parked {
  struct Rows {
    const T *k, *v;  // the first row of tile 0
  };
  struct Queries {
    int first, last, batch, head;
  };
  struct Mask {
    TileMask of_tile_0;
    int queries;  // that the block has
  };
  static constexpr int kRows = 0, kQueries = 16, kMask = 32, kPlain = 48;  // byte offsets
  static constexpr int kBytesAWarp = 8;                                    // from kPlain on

  uint32_t at;

  template <typename Sixteen>
  __device__ void put(int offset, const Sixteen& x) const {
    store_shared(at + offset, __builtin_bit_cast(uint4, x));
  }
  template <typename Sixteen>
  __device__ Sixteen get(int offset) const {
    return __builtin_bit_cast(Sixteen, load_shared_16_bytes(at + offset));
  }
  // The tiles that every row of a warp sees whole.
  __device__ void put_plain(int warp, const TileRange& plain) const {
    store_shared(at + kPlain + warp * kBytesAWarp, static_cast<uint32_t>(plain.first));
    store_shared(at + kPlain + warp * kBytesAWarp + 4, static_cast<uint32_t>(plain.last));
  }
  __device__ TileRange plain(int warp) const {
    return __builtin_bit_cast(TileRange, load_shared_two_floats(at + kPlain + warp * kBytesAWarp));
  }
};

// Shared memory: Q [kQueries], then twice K and V [kKeys], then what is parked.
template <typename Tiles>
struct ForwardMemory {
  using Layout = Swizzled<Tiles::kColumns>;
  static constexpr int kTile = Tiles::kKeys * Layout::kRowBytes, kStage = 2 * kTile;
  static constexpr int kFirstStage = Tiles::kQueries * Layout::kRowBytes, kParked = kFirstStage + 2 * kStage;
  static constexpr int kBytes = kParked + Parked<void>::kPlain + Tiles::kWarps * Parked<void>::kBytesAWarp;
};

// Start the first copies and park what the block needs later. Returns how many tiles of keys it visits.
template <typename T, typename Tiles>
__device__ inline int begin_async_forward(const ForwardParams<T>& p, uint32_t q_tile, const Parked<T>& parked) {
  using Memory = ForwardMemory<Tiles>;
  using Layout = typename Memory::Layout;
  constexpr int kThreads = Tiles::kWarps * kWarp, kKeys = Tiles::kKeys;
  const int head_dim = static_cast<int>(p.shape.head_dim), kv_len = static_cast<int>(p.shape.kv_len);
  const auto [batch, head, kv_head, q0, q1] = QueryTile::of_block(p.shape, Tiles::kQueries);
  const TileBand band = TileBand::of(p.band);
  const TileRange tiles = key_tiles(band, q0, q1, kv_len, kKeys);
  const int visits = tiles.last - tiles.first, first_key = tiles.first * kKeys, row = (visits - 1) * kKeys;
  const typename Parked<T>::Rows rows{p.k.row(batch, kv_head, first_key), p.v.row(batch, kv_head, first_key)};
  start_tile_copy<Layout, Tiles::kQueries, kThreads>(q_tile, p.q.row(batch, head, q0), p.q.row_stride, q1 - q0,
                                                     head_dim);
  if (visits > 0) {
    const uint32_t k_tile = q_tile + Memory::kFirstStage;
    const int present = kv_len - first_key - row;
    start_tile_copy<Layout, kKeys, kThreads>(k_tile, rows.k + row * p.k.row_stride, p.k.row_stride, present, head_dim);
    start_tile_copy<Layout, kKeys, kThreads>(k_tile + Memory::kTile, rows.v + row * p.v.row_stride, p.v.row_stride,
                                             present, head_dim);
  }
  commit_copies();
  const TileMask mask = TileMask::of(band, q0, first_key, kv_len);
  const int warp = threadIdx.x / kWarp, warp_row = warp * Tiles::kWarpRows;
  if (threadIdx.x == 0) {
    parked.put(Parked<T>::kRows, rows);
    parked.put(Parked<T>::kQueries, typename Parked<T>::Queries{q0, q1, batch, head});
    parked.put(Parked<T>::kMask, typename Parked<T>::Mask{mask, q1 - q0});
  }
  if (threadIdx.x % kWarp == 0) {
    const TileRange plain =
        plain_key_tiles({mask.low, mask.high}, warp_row, warp_row + Tiles::kWarpRows, mask.keys, kKeys);
    parked.put_plain(warp, q0 + warp_row < q1 ? plain : TileRange{0, 0});
  }
  return visits;
}

template <typename T, typename Tiles>
__global__ void __launch_bounds__(Tiles::kWarps* kWarp, Tiles::kBlocks) async_forward_kernel(ForwardParams<T> p) {
  using Memory = ForwardMemory<Tiles>;
  using Layout = typename Memory::Layout;
  constexpr int kThreads = Tiles::kWarps * kWarp, kKeys = Tiles::kKeys, kDepth = Tiles::kColumns / kPiece;
  const uint32_t q_tile = shared_memory_start(), stages = q_tile + Memory::kFirstStage;
  const Parked<T> parked{q_tile + Memory::kParked};
  const int visits = begin_async_forward<T, Tiles>(p, q_tile, parked);

  FragmentSoftmax<Tiles::kRowPieces> softmax;
  softmax.clear();
  Accumulator<Tiles::kRowPieces, Tiles::kColumns / kChunk> out;
  out.clear();

  // One warp's work on one tile. With and without a mask it is two stretches of code, each of which the compiler orders
  // as a whole: copies, products, exponentials and products again take turns.
  const auto visit = [&](int tile, uint32_t k_tile, auto is_masked) {
    constexpr bool masked = decltype(is_masked)::value;
    if (tile > 0) {  // copy the next tile, all of whose rows exist, while no scores occupy registers
      const auto rows = parked.template get<typename Parked<T>::Rows>(Parked<T>::kRows);
      const uint32_t next = 2 * stages + Memory::kStage - k_tile;
      const int row = (tile - 1) * kKeys, head_dim = static_cast<int>(p.shape.head_dim);
      start_whole_tile_copy<Layout, kKeys, kThreads>(next, rows.k, p.k.row_stride, row, head_dim);
      start_whole_tile_copy<Layout, kKeys, kThreads>(next + Memory::kTile, rows.v, p.v.row_stride, row, head_dim);
    }
    commit_copies();
    // Where this lane points ldmatrix to is worked out anew in every tile, in a few instructions.
    const int thread = thread_read_anew(), lane = thread % kWarp, warp_row = thread / kWarp * Tiles::kWarpRows;
    const uint32_t down = Layout::offset(down_then_right(lane).row, down_then_right(lane).chunk);
    const uint32_t right = Layout::offset(right_then_down(lane).row, right_then_down(lane).chunk);
    // A tile with a mask is taken in parts, which leaves registers for the mask; parts that no row sees are left out,
    // as is all work of a warp without rows.
    constexpr int kPart = !masked ? kKeys : kKeys % 32 == 0 ? 32 : kPiece;
#pragma unroll 1
    for (int part = kKeys / kPart - 1; part >= 0; --part) {
      TileMask mask;
      if constexpr (masked) {
        const auto found = parked.template get<typename Parked<T>::Mask>(Parked<T>::kMask);
        mask = found.of_tile_0.from(warp_row, tile * kKeys + part * kPart);
        if (warp_row >= found.queries || mask.hides_all(Tiles::kWarpRows, kPart)) continue;
      }
      const uint32_t k_part = k_tile + part * (kPart * Layout::kRowBytes);
      Accumulator<Tiles::kRowPieces, kPart / kChunk> scores;
      scores.clear();
      add_product<T, kDepth>(scores, AlongDepth<Layout>{q_tile + warp_row * Layout::kRowBytes + down},
                             AlongDepth<Layout>{k_part + right});
      if constexpr (masked) hide_scores(scores, mask, 0, 0);
      add_weighted<T>(out, scores, softmax, AcrossDepth<Layout>{k_part + Memory::kTile + down, 0}, p.scale_log2);
    }
  };
  // From the last tile to the first, because only the last may be ragged.
  uint32_t k_tile = stages;
  for (int tile = visits - 1; tile >= 0; --tile) {
    wait_for_copies<0>();
    __syncthreads();  // the copies of all threads are there, and all are done with the stage that is filled next
    if (parked.plain(thread_read_anew() / kWarp).has(tile)) {
      visit(tile, k_tile, std::false_type{});
    } else {
      visit(tile, k_tile, std::true_type{});
    }
    k_tile = 2 * stages + Memory::kStage - k_tile;
  }

  // The output goes through the warp's own rows of the Q tile, so that whole rows are written to global memory.
  wait_for_copies<0>();  // where there was no tile of keys, Q may still be on its way
  __syncthreads();
  float inverse[Tiles::kRowPieces][2], log_sum_exp[Tiles::kRowPieces][2];
  softmax.finish(inverse, log_sum_exp);
  const int warp_row = thread_read_anew() / kWarp * Tiles::kWarpRows;
  const auto queries = parked.template get<typename Parked<T>::Queries>(Parked<T>::kQueries);
  const int row = queries.first + warp_row;
  store_row_numbers(log_sum_exp, p.lse + (queries.batch * p.shape.heads + queries.head) * p.shape.q_len, row,
                    queries.last);
  store_rounded<T, Layout>(out, inverse, q_tile, warp_row);
  __syncwarp();
  store_warp_rows<Layout, Tiles::kWarpRows>(q_tile + warp_row * Layout::kRowBytes,
                                            p.out.row(queries.batch, queries.head, row), p.out.row_stride,
                                            queries.last - row, static_cast<int>(p.shape.head_dim));
}

// `on` is a tensor of the device to run on.
template <typename T, typename Tiles>
void launch_async_forward(const Tensor& on, const ForwardParams<T>& params) {
  const int64_t tiles = (params.shape.q_len + Tiles::kQueries - 1) / Tiles::kQueries;
  launch(on, params.shape.batch * params.shape.heads * tiles, dim3(Tiles::kWarps * kWarp), ForwardMemory<Tiles>::kBytes,
         async_forward_kernel<T, Tiles>, params);
}

}  // namespace attn
