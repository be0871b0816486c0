// A candidate for the forward kernel of tiled-async (async_forward.h); README.md says what each idea should bring.
//
// What:  weights are computed slice by slice between the products with V, in one stretch of code without a branch, so
//        that a warp's exponentials run beside its own products. Copies start at the top of a tile, where no scores
//        occupy registers, in half the instructions. Tiles with a mask have code of their own. Whether the scores
//        outgrew the maximum is asked lane by lane: lanes exchange maxima only when some did.
// Why:   async_forward.h computes all weights, then starts copies behind two branches, then multiplies: nothing
//        overlaps within a warp, and the compiler cannot move an instruction across.
#pragma once

#include "async_tiles.h"
#include "fragment_softmax.h"
#include "launch.h"
#include "params.h"
#include "query_tile.h"
#include "shared_tile.h"
#include "tile_mask.h"

namespace attn {

// Beside the tiles of ForwardTiles: whether Q's fragments stay in registers; one weight in `share` is computed by a
// polynomial, 0: none; whether each warp asks for itself which tiles, and which parts of them, need a mask or are
// hidden; whether tiles without a mask may raise the maxima. Not to follow them gives inf where a score outgrows the
// first tile's by 2^127: it shows what following costs, and is no candidate.
template <int columns, int row_pieces, int warps, int keys, int stages, int blocks, bool holds_queries = false,
          int share = 0, bool warp_masks = true, bool follows = true>
struct FusedTiles : ForwardTiles<columns, row_pieces, warps, keys, stages, blocks> {
  static constexpr bool kHoldsQueries = holds_queries, kWarpMasks = warp_masks;
  static constexpr bool kFollows = follows;
  static constexpr int kShare = share;
};

// 2^x by a polynomial of degree 4 on the multiply-add units, which leaves ex2's unit free for others: relative error
// 3e-6. Results below 2^-125 are off; they are never the largest of a row.
__device__ inline float polynomial_exp2(float x) {
  x = fmaxf(x, -126.0f);
  const float shifted = x + 12582912.0f;  // 1.5 * 2^23: the integer part, rounded, lands in the lowest bits
  const float fraction = x - (shifted - 12582912.0f);
  float y = 0.009570101276040077f;
  y = fmaf(y, fraction, 0.05591785907745361f);
  y = fmaf(y, fraction, 0.240247443318367f);
  y = fmaf(y, fraction, 0.6931217908859253f);
  y = fmaf(y, fraction, 0.9999992847442627f);
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, y) + (__builtin_bit_cast(uint32_t, shifted) << 23));
}

constexpr float kLowestShift = -3e38f;  // so low that any score outgrows it, and finite, so that -inf - shift is -inf

template <int row_pieces>
struct RunningSoftmax {
  float shift[row_pieces]
             [2];  // log2 of what the row's weights are divided by: its scaled maximum, or at most kSlack less
  float sum[row_pieces][2];  // of this lane's weights

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < row_pieces * 2; ++i) shift[i / 2][i % 2] = kLowestShift, sum[i / 2][i % 2] = 0.0f;
  }

  template <typename Scores, typename Out>
  __device__ void follow(const Scores& scores, Out& out, float scale_log2) {
    float highest[row_pieces][2];
    bool outgrown = false;
#pragma unroll
    for (int m = 0; m < row_pieces; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float x = fmaxf(scores.at[m][0][2 * half], scores.at[m][0][2 * half + 1]);
#pragma unroll
        for (int n = 1; n < Scores::kColumnTiles; ++n) {
          x = fmaxf(x, fmaxf(scores.at[m][n][2 * half], scores.at[m][n][2 * half + 1]));
        }
        highest[m][half] = x;
        outgrown |= fmaf(x, scale_log2, -shift[m][half]) > kSlack;
      }
    }
    // Each lane looks at its own scores; the row's maximum is put together only when some lane's outgrew the shift.
    if (__any_sync(kAllLanes, outgrown)) raise(highest, out, scale_log2);
  }

  template <int share>
  __device__ float weight(float score, int m, int half, float scale_log2, int index) {
    const float x = fmaf(score, scale_log2, -shift[m][half]);
    const float y = share != 0 && index % (share == 0 ? 1 : share) == share - 1 ? polynomial_exp2(x) : fast_exp2(x);
    sum[m][half] += y;
    return y;
  }

  __device__ void finish(float (&inverse)[row_pieces][2], float (&log_sum_exp)[row_pieces][2]) {
#pragma unroll
    for (int m = 0; m < row_pieces; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float total = quad_sum(sum[m][half]);
        inverse[m][half] = total == 0.0f ? 0.0f : 1.0f / total;
        log_sum_exp[m][half] = (shift[m][half] + log2f(total)) * kLn2;
      }
    }
  }

  template <typename Out>
  __device__ void raise(const float (&highest)[row_pieces][2], Out& out, float scale_log2) {
#pragma unroll
    for (int m = 0; m < row_pieces; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float before = shift[m][half];
        shift[m][half] = fmaxf(before, quad_max(highest[m][half]) * scale_log2);
        const float rescale = fast_exp2(before - shift[m][half]);
        sum[m][half] *= rescale;
#pragma unroll
        for (int n = 0; n < Out::kColumnTiles; ++n) {
          out.at[m][n][2 * half] *= rescale;
          out.at[m][n][2 * half + 1] *= rescale;
        }
      }
    }
  }
};

// The left factor of the product with V: scores that become weights when the product asks for them, so that the
// exponentials of one slice take turns with the products of another.
template <typename T, int share, typename Scores, typename Softmax>
struct WeightsOf {
  const Scores& scores;
  Softmax& softmax;
  float scale_log2;

  __device__ void load(int m, int depth, uint32_t (&to)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float (&c)[4] = scores.at[m][2 * depth + i / 2];
      const int half = i % 2;
      const float first = softmax.template weight<share>(c[2 * half], m, half, scale_log2, 2 * i);
      const float second = softmax.template weight<share>(c[2 * half + 1], m, half, scale_log2, 2 * i + 1);
      to[i] = pack<T>(first, second);
    }
  }
};

// Start to copy a whole tile [tile_rows, Layout::kColumns] from row `row` of a head on; all of its rows exist. Chunks
// past head_dim become 0.
template <typename Layout, int tile_rows, int threads, typename T>
__device__ inline void start_whole_tile_copy(uint32_t tile, const T* head, int64_t row_stride, int row, int head_dim) {
  constexpr int kGroup = Layout::kChunks % 8 == 0 ? 8 : Layout::kChunks & -Layout::kChunks;
  constexpr int kRowsATurn = threads / kGroup;
  static_assert(threads % kGroup == 0 && tile_rows % kRowsATurn == 0 && kRowsATurn % 8 == 0);
  const int thread = thread_read_anew(), chunk = thread % kGroup;
  const T* from = head + (row + thread / kGroup) * row_stride + chunk * kChunk;
  const uint32_t to = tile + Layout::offset(thread / kGroup, chunk);
#pragma unroll
  for (int i = 0; i < tile_rows / kRowsATurn; ++i) {
#pragma unroll
    for (int j = 0; j < Layout::kChunks / kGroup; ++j) {
      start_copy(to + i * kRowsATurn * Layout::kRowBytes + j * kGroup * 16, from + j * kGroup * kChunk,
                 (chunk + j * kGroup) * kChunk < head_dim);
    }
    from += kRowsATurn * row_stride;
  }
}

// What a block needs once a tile, or once at all, lies in shared memory, where it takes no registers. Tiles of keys are
// numbered from the first that the block visits.
template <typename T>
struct ParkedHeads {
  const T *k, *v;  // the first row of tile 0
};
constexpr int kParkedBytes = 48;  // and 8 for each warp

template <typename T, typename Tiles>
__global__ void __launch_bounds__(Tiles::kWarps* kWarp, Tiles::kBlocks) fused_forward_kernel(ForwardParams<T> p) {
  constexpr int columns = Tiles::kColumns;
  using Layout = Swizzled<columns>;
  static_assert(Tiles::kStages >= 2);
  constexpr int kThreads = Tiles::kWarps * kWarp, kKeys = Tiles::kKeys, kStages = Tiles::kStages;
  constexpr int kTileBytes = kKeys * Layout::kRowBytes, kStageBytes = 2 * kTileBytes;
  const uint32_t q_tile = shared_memory_start();
  const uint32_t stages = q_tile + Tiles::kQueries * Layout::kRowBytes;
  const uint32_t parked = stages + kStages * kStageBytes;  // heads; mask; queries; plain tiles
  int visits;
  {
    const int head_dim = static_cast<int>(p.shape.head_dim), kv_len = static_cast<int>(p.shape.kv_len);
    const auto [batch, head, kv_head, q0, q1] = QueryTile::of_block(p.shape, Tiles::kQueries);
    const TileBand band = TileBand::of(p.band);
    const TileRange tiles = key_tiles(band, q0, q1, kv_len, kKeys);
    visits = tiles.last - tiles.first;
    const int first_key = tiles.first * kKeys;
    const T* const k_rows = p.k.row(batch, kv_head, first_key);
    const T* const v_rows = p.v.row(batch, kv_head, first_key);
    start_tile_copy<Layout, Tiles::kQueries, kThreads>(q_tile, p.q.row(batch, head, q0), p.q.row_stride, q1 - q0,
                                                       head_dim);
#pragma unroll 1
    for (int stage = 0; stage < kStages - 1; ++stage) {
      const int tile = visits - 1 - stage, row = tile * kKeys, rows = kv_len - first_key - row;
      if (tile >= 0) {
        const uint32_t k_tile = stages + stage * kStageBytes;
        start_tile_copy<Layout, kKeys, kThreads>(k_tile, k_rows + row * p.k.row_stride, p.k.row_stride, rows, head_dim);
        start_tile_copy<Layout, kKeys, kThreads>(k_tile + kTileBytes, v_rows + row * p.v.row_stride, p.v.row_stride,
                                                 rows, head_dim);
      }
      commit_copies();
    }
    const TileMask mask = TileMask::of(band, q0, first_key, kv_len);
    if (threadIdx.x == 0) {
      store_shared(parked, __builtin_bit_cast(uint4, ParkedHeads<T>{k_rows, v_rows}));
      store_shared(parked + 16, __builtin_bit_cast(uint4, int4{q0, q1, batch, head}));
      store_shared(parked + 32, __builtin_bit_cast(uint4, int4{mask.low, mask.high, mask.keys, q1 - q0}));
    }
    if (threadIdx.x % kWarp == 0) {
      // The tiles that all rows of this warp see whole; other warps of the block may need a mask there.
      const int warp = threadIdx.x / kWarp;
      const int from = Tiles::kWarpMasks ? warp * Tiles::kWarpRows : 0;
      const int to = Tiles::kWarpMasks ? from + Tiles::kWarpRows : Tiles::kQueries;
      const bool exists = from < q1 - q0;
      const TileRange plain =
          exists ? plain_key_tiles({mask.low, mask.high}, from, to, mask.keys, kKeys) : TileRange{0, 0};
      store_shared(parked + kParkedBytes + warp * 8, static_cast<uint32_t>(plain.first));
      store_shared(parked + kParkedBytes + warp * 8 + 4, static_cast<uint32_t>(plain.last));
    }
  }

  RunningSoftmax<Tiles::kRowPieces> softmax;
  softmax.clear();
  Accumulator<Tiles::kRowPieces, columns / kChunk> out;
  out.clear();
  wait_for_copies<kStages - 2>();
  __syncthreads();
  const auto queries =
      left_factor<Layout, Tiles::kRowPieces, Tiles::kHoldsQueries>(q_tile, threadIdx.x / kWarp * Tiles::kWarpRows);

  uint32_t k_tile = stages, free_stage = stages + (kStages - 1) * kStageBytes;
  const auto visit = [&](int tile, auto is_masked) {
    constexpr bool masked = decltype(is_masked)::value;
    if constexpr (kStages == 2) free_stage = 2 * stages + kStageBytes - k_tile;
    if (tile >= kStages - 1) {
      const auto heads = __builtin_bit_cast(ParkedHeads<T>, load_shared_16_bytes(parked));
      const int row = (tile - (kStages - 1)) * kKeys, head_dim = static_cast<int>(p.shape.head_dim);
      start_whole_tile_copy<Layout, kKeys, kThreads>(free_stage, heads.k, p.k.row_stride, row, head_dim);
      start_whole_tile_copy<Layout, kKeys, kThreads>(free_stage + kTileBytes, heads.v, p.v.row_stride, row, head_dim);
    }
    commit_copies();
    // Where this lane points ldmatrix to is worked out from its number in every tile: it is a few instructions.
    const int thread = thread_read_anew(), lane = thread % kWarp;
    const uint32_t down = Layout::offset(down_then_right(lane).row, down_then_right(lane).chunk);
    // A masked tile is taken in parts, which leaves registers for the mask, and hidden parts are left out.
    constexpr int kPart = !masked ? kKeys : kKeys % 32 == 0 ? 32 : 16;
#pragma unroll 1
    for (int part = kKeys / kPart - 1; part >= 0; --part) {
      if constexpr (masked && Tiles::kWarpMasks) {
        const auto mask = __builtin_bit_cast(int4, load_shared_16_bytes(parked + 32));
        const int key = tile * kKeys + part * kPart - thread / kWarp * Tiles::kWarpRows;  // less the warp's first row
        if (key - (Tiles::kWarpRows - 1) > mask.y || key + kPart - 1 < mask.x) continue;  // no row sees any of these
        if (thread / kWarp * Tiles::kWarpRows >= mask.w) continue;                        // there are no rows
      }
      const uint32_t k_part = k_tile + part * (kPart * Layout::kRowBytes);
      Accumulator<Tiles::kRowPieces, kPart / kChunk> scores;
      scores.clear();
      const AlongDepth<Layout> keys{k_part + Layout::offset(right_then_down(lane).row, right_then_down(lane).chunk)};
      if constexpr (Tiles::kHoldsQueries) {
        add_product<T, columns / kPiece>(scores, queries, keys);
      } else {
        const uint32_t warp_tile = q_tile + thread / kWarp * Tiles::kWarpRows * Layout::kRowBytes;
        add_product<T, columns / kPiece>(scores, AlongDepth<Layout>{warp_tile + down}, keys);
      }
      if constexpr (masked) {
        const auto mask = __builtin_bit_cast(int4, load_shared_16_bytes(parked + 32));
        hide_scores(scores, TileMask{mask.x, mask.y, mask.z}.from(0, tile * kKeys + part * kPart),
                    thread / kWarp * Tiles::kWarpRows, 0);
      }
      if constexpr (masked || Tiles::kFollows) softmax.follow(scores, out, p.scale_log2);
      const WeightsOf<T, masked ? 0 : Tiles::kShare, decltype(scores), decltype(softmax)> weights{scores, softmax,
                                                                                                  p.scale_log2};
      add_product<T, kPart / kPiece>(out, weights, AcrossDepth<Layout>{k_part + kTileBytes + down, 0});
    }
    if constexpr (kStages == 2) {
      k_tile = 2 * stages + kStageBytes - k_tile;
    } else {
      free_stage = k_tile;
      k_tile = k_tile + kStageBytes == parked ? stages : k_tile + kStageBytes;
    }
  };
  for (int tile = visits - 1; tile >= 0; --tile) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // the copies of all threads are there, and all are done with the stage that is filled next
    const float2 plain = load_shared_two_floats(parked + kParkedBytes + thread_read_anew() / kWarp * 8);
    if (__builtin_bit_cast(int, plain.x) <= tile && tile < __builtin_bit_cast(int, plain.y) &&
        (Tiles::kFollows || tile < visits - 1)) {
      visit(tile, std::false_type{});
    } else {
      visit(tile, std::true_type{});
    }
  }

  float inverse[Tiles::kRowPieces][2], log_sum_exp[Tiles::kRowPieces][2];
  softmax.finish(inverse, log_sum_exp);
  const int warp_row = thread_read_anew() / kWarp * Tiles::kWarpRows;
  const auto place = __builtin_bit_cast(int4, load_shared_16_bytes(parked + 16));
  const int q0 = place.x, q1 = place.y, batch = place.z, head = place.w;
  store_row_numbers(log_sum_exp, p.lse + (batch * p.shape.heads + head) * p.shape.q_len, q0 + warp_row, q1);
  wait_for_copies<0>();  // where there was no tile of keys, Q may still be on its way
  __syncthreads();
  store_rounded<T, Layout>(out, inverse, q_tile, warp_row);
  __syncwarp();
  store_warp_rows<Layout, Tiles::kWarpRows>(q_tile + warp_row * Layout::kRowBytes,
                                            p.out.row(batch, head, q0 + warp_row), p.out.row_stride, q1 - q0 - warp_row,
                                            static_cast<int>(p.shape.head_dim));
}

template <typename Tiles>
constexpr int kFusedForwardBytes =
    (Tiles::kQueries + 2 * Tiles::kStages * Tiles::kKeys) * Swizzled<Tiles::kColumns>::kRowBytes + kParkedBytes +
    Tiles::kWarps * 8;

template <typename T, typename Tiles>
void launch_fused_forward(const Tensor& on, const ForwardParams<T>& params) {
  const int64_t tiles = (params.shape.q_len + Tiles::kQueries - 1) / Tiles::kQueries;
  launch(on, params.shape.batch * params.shape.heads * tiles, dim3(Tiles::kWarps * kWarp), kFusedForwardBytes<Tiles>,
         fused_forward_kernel<T, Tiles>, params);
}

}  // namespace attn
