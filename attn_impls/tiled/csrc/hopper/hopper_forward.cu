// tiled-hopper: blocks that stay, and query tiles that follow each other without a gap.
//
// What:  as tiled-overlap, but there are as many blocks as multiprocessors, and each computes many query tiles: the
//        copies for the next run ahead while one is computed, its first scores are computed beside the last product of
//        the one before, and its output goes from registers to global memory while the tensor cores are at work. Under
//        a mask the longest tiles come first and blocks fetch the next one when they are ready for it, and a warpgroup
//        leaves out the half of a diagonal tile of keys that it sees nothing of. Tiles are chosen by head dim and mask.
// Why:   a query tile of 1024 keys takes some 15 us, of which tiled-overlap spends 2 to 3 waiting: for barriers, for
//        its first copies, for a first product that nothing runs beside, and for its output. Under a causal mask blocks
//        differ in length by the number of their tiles, and the last to finish is waited for.
// Limit: at head dim 64 exponentials, at 128 the power that the chip may draw.
#include "../cuda/register_forward.h"
#include "persistent_forward.h"

namespace attn {
namespace {

constexpr int64_t kSectionBytes = int64_t{8} << 20;  // a few heads for every multiprocessor, a sixth of the L2 cache
constexpr double kMostEmpty = 1.05;                  // more scores are computed than with tiles that fit, times this

// How many scores the tiles of a head have, with a mask or without.
template <typename Tiles>
double scores_of_tiles(const Shape& shape) {
  const auto round_up = [](int64_t length, int tile) { return static_cast<double>((length + tile - 1) / tile * tile); };
  return round_up(shape.q_len, Tiles::kQueries) * round_up(shape.kv_len, Tiles::kKeys);
}

std::tuple<Tensor, Tensor> hopper_forward(const Tensor& q_given, const Tensor& k_given, const Tensor& v_given,
                                          double scale, int64_t low, int64_t high) {
  const Band band = Band::from_diagonals(low, high);
  const auto run = [&](const Shape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                       const Tensor& lse) {
    const bool hides = !band.shows_tile(0, shape.q_len, 0, shape.kv_len);
    // Without a mask all tiles cost the same: dealing them is as even, and one head at a time reads the least.
    const Order order{hides ? kSectionBytes : 0, hides, true};
    with_half_type(q, [&](auto element) {
      with_slab_columns(shape.head_dim, [&](auto columns) {
        using Choice = HopperForward<decltype(columns)::kValue>;
        const auto launch = [&](auto tiles) {
          using Tiles = decltype(tiles);
          launch_persistent_forward<decltype(element), Tiles>(shape, q, k, v, out, lse, scale, band, order);
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
