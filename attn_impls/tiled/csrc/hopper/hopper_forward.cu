// tiled-hopper: blocks that stay, and query tiles that follow each other without a gap.
//
// What:  as tiled-overlap, but there are as many blocks as multiprocessors, and each computes many query tiles: the
//        copies for the next run ahead while one is computed, and its output goes from registers to global memory while
//        the tensor cores are at work. At head dim 64 and 256 its first scores are computed beside the last product of
//        the one before. At 128, and at 64 where tiles for that would compute many scores that nobody needs, softmax
//        and product do not overlap: three or four warpgroups fill each other's gaps, and each leaves out what its own
//        queries see nothing of. Under a mask the longest tiles come first, and a block fetches the next one when it
//        begins with the last keys of the one before.
// Why:   a query tile of 1024 keys takes some 15 us, of which tiled-overlap spends 2 to 3 waiting: for barriers, for
//        its first copies, for a first product that nothing runs beside, and for its output. Under a causal mask blocks
//        differ in length by the number of their tiles, and the last to finish is waited for.
// Gave:  of the better of cuDNN and flash-attn-4 on an H100, over lengths 512 to 16384, full and causal: 108 % at head
//        dim 64, least 102; 106 % at 128, least 101; of cuDNN at 256 109 %, least 92 (docs/kernel-notes.md).
// Limit: at head dim 64 exponentials, at 128 the power that the chip may draw, at length 512 memory.
#include <algorithm>
#include <type_traits>

#include "../cuda/register_forward.h"
#include "persistent_forward.h"

namespace attn {
namespace {

// Under a mask a section is two rounds: in one of them a block has a long tile, and in the other a short one. Where so
// few queries read each key that memory takes the time, heads lead, and where they are fewer still, one round ends
// them.
constexpr int64_t kFewQueries = 1536, kFewestQueries = 768;

// How many scores are computed for a head. Where softmax and product do not overlap, every warpgroup looks after its
// own.
template <typename Tiles>
double scores_of_tiles(const Shape& shape, const Band& band) {
  constexpr int kRows = Tiles::kOverlaps ? Tiles::kQueries : kWarpgroupRows;
  const TileBand near = TileBand::of(band);
  const int q_len = static_cast<int>(shape.q_len), kv_len = static_cast<int>(shape.kv_len);
  double keys = 0;
  for (int q1 = q_len; q1 > 0; q1 -= kRows) {
    const int q0 = std::max(q1 - kRows, 0);
    const TileRange range = key_tiles(near, q0, q1, kv_len, Tiles::kKeys);
    int last = range.last * Tiles::kKeys;
    if (Tiles::kHalves)
      last = std::min(last, key_tiles(near, q0, q1, kv_len, Tiles::kKeys / 2).last * Tiles::kKeys / 2);
    keys += std::max(last - range.first * Tiles::kKeys, 0);
  }
  return keys * kRows;
}

std::tuple<Tensor, Tensor> hopper_forward(const Tensor& q_given, const Tensor& k_given, const Tensor& v_given,
                                          double scale, int64_t low, int64_t high) {
  const Band band = Band::from_diagonals(low, high);
  const auto run = [&](const Shape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                       const Tensor& lse) {
    const bool hides = !band.shows_tile(0, shape.q_len, 0, shape.kv_len);
    // Without a mask all tiles cost the same, and one head at a time reads the least.
    const int64_t queries = shape.q_len * shape.group();
    const Order order = hides ? Order{queries <= kFewestQueries ? 1 : 2, queries <= kFewQueries} : Order{0, false};
    with_half_type(q, [&](auto element) {
      with_slab_columns(shape.head_dim, [&](auto columns) {
        using Choice = HopperForward<decltype(columns)::kValue>;
        const auto launch = [&](auto tiles) {
          using Tiles = decltype(tiles);
          launch_persistent_forward<decltype(element), Tiles>(shape, q, k, v, out, lse, scale, band, order);
        };
        using Quick = typename Choice::Quick;
        using Sparing = typename Choice::Sparing;
        if constexpr (std::is_same_v<Quick, Sparing>) {
          launch(Quick{});
        } else if (scores_of_tiles<Quick>(shape, band) >
                   Choice::kMostNeedless * scores_of_tiles<Sparing>(shape, band)) {
          launch(Sparing{});
        } else {
          launch(Quick{});
        }
      });
    });
  };
  return with_hopper_tensors(q_given, k_given, v_given, scale, run);
}

}  // namespace
}  // namespace attn

ATTN_FORWARD_OP(hopper_forward)
