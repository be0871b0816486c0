// tiled-hopper: blocks that stay, and query tiles that follow each other without a gap.
//
// What:  as tiled-overlap, but there are as many blocks as multiprocessors, and each computes many query tiles: the
//        copies for the next run ahead while one is computed, its first scores are computed beside the last product of
//        the one before, and its output goes from registers to global memory while the tensor cores are at work. Under
//        a mask the longest tiles come first, and a block fetches the next one when it begins with the last keys of the
//        one before. Tiles are chosen by head dim, mask and size.
// Why:   a query tile of 1024 keys takes some 15 us, of which tiled-overlap spends 2 to 3 waiting: for barriers, for
//        its first copies, for a first product that nothing runs beside, and for its output. Under a causal mask blocks
//        differ in length by the number of their tiles, and the last to finish is waited for.
// Gave:  measured on an H100 before tiles and order were chosen by it: at length 512 21 % at head dim 64 and 9 % at
//        128, under a causal mask 38 and 16 %; at 16384 it lost 4 and 2 %, causal 7 and 13 %, by the order in which
//        tiles were fetched (docs/kernel-notes.md).
// Limit: at head dim 64 exponentials, at 128 the power that the chip may draw.
#include "../cuda/register_forward.h"
#include "persistent_forward.h"

namespace attn {
namespace {

constexpr int kRounds = 2;           // in one of which a block has a long tile, and in the other a short one
constexpr double kMostEmpty = 1.05;  // more scores are computed than with tiles that fit, times this

// How many scores are computed for a head, with a mask or without. Where softmax and products take turns, a warpgroup
// without queries computes none.
template <typename Tiles>
double scores_of_tiles(const Shape& shape) {
  const auto round_up = [](int64_t length, int tile) { return static_cast<double>((length + tile - 1) / tile * tile); };
  const int rows = Tiles::kOverlaps ? Tiles::kQueries : kWarpgroupRows;
  return round_up(shape.q_len, rows) * round_up(shape.kv_len, Tiles::kKeys);
}

std::tuple<Tensor, Tensor> hopper_forward(const Tensor& q_given, const Tensor& k_given, const Tensor& v_given,
                                          double scale, int64_t low, int64_t high) {
  const Band band = Band::from_diagonals(low, high);
  const auto run = [&](const Shape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                       const Tensor& lse) {
    const bool hides = !band.shows_tile(0, shape.q_len, 0, shape.kv_len);
    // Without a mask all tiles cost the same, and one head at a time reads the least.
    const int rounds = hides ? kRounds : 0;
    with_half_type(q, [&](auto element) {
      with_slab_columns(shape.head_dim, [&](auto columns) {
        using Choice = HopperForward<decltype(columns)::kValue>;
        const auto launch = [&](auto tiles) {
          using Tiles = decltype(tiles);
          launch_persistent_forward<decltype(element), Tiles>(shape, q, k, v, out, lse, scale, band, rounds);
        };
        using Fitting = typename Choice::Fitting;
        const auto launch_if_it_fits = [&](auto tiles) {
          if (scores_of_tiles<decltype(tiles)>(shape) > kMostEmpty * scores_of_tiles<Fitting>(shape))
            launch(Fitting{});
          else
            launch(tiles);
        };
        if (hides)
          launch_if_it_fits(typename Choice::Masked{});
        else
          launch_if_it_fits(typename Choice::Full{});
      });
    });
  };
  return with_hopper_tensors(q_given, k_given, v_given, scale, run);
}

}  // namespace
}  // namespace attn

ATTN_FORWARD_OP(hopper_forward)
