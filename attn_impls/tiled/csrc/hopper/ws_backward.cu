// tiled-ws, backward: a warp that copies Q and dO, warpgroups that own keys, dQ added up by TMA.
//
// What:  three kernels, as in tiled-async: the rows' numbers, the products, the rounding of dQ. The second has as many
//        blocks as multiprocessors, each of which takes up 128 keys and values after the other, the next that nobody
//        has. It holds them in shared memory while one warp asks for tiles of Q and dO, and visits all queries that see
//        them, of all query heads that read their key head; the next keys are copied while dK and dV are written.
//        backward_keys.h says how the five products of a visit follow one another. P^T and dS^T never leave the
//        registers as factors of dV and dK; for dQ = dS K, dS is the one thing that passes through shared memory, and
//        the result leaves as 4096-byte additions that the copy engine sends to the L2 cache while the tensor cores go
//        on.
// Why:   tiled-async reads each fragment of Q and dO for 16 rows of result, and shared memory is its limit. wgmma reads
//        them for 64, and by itself. Ordinary additions to dQ take instructions of the warps that compute. A block for
//        each tile of keys spends 15 to 20 % of its time at head dim 64 and length 1024 beside its visits.
// Deterministic: the additions of a tile of queries wait for those of the key tiles after it, counted in global memory.
//        The last keys come first: a block waits only for keys that were taken up before its own, and those that were
//        taken up first of all that are unfinished wait for none.
// Gave:  on an H100, with a block for each tile of keys, 1.06 to 1.41 times the speed of tiled-async's backward at head
//        dim 64 and 1.30 to 1.85 times at 128, at length 512 to 16384; blocks that stay give 2 to 7 % more at 512 and
//        1024, but 1 % less at 512 under a causal mask at head dim 128, and nothing for certain at 4096 and 16384.
//        Deterministic mode takes away 14 to 33 % (docs/kernel-notes-backward.md).
// Limit: five products read 368 KB of shared memory a visit at head dim 128 and keep the tensor cores waiting for an
//        eighth of the time. Heads wider than 128 do not fit the registers: tiled-async's backward takes them.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "ws_backward.h"

namespace attn {
namespace {

std::tuple<Tensor, Tensor, Tensor> ws_backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                               const Tensor& out, const Tensor& lse, std::optional<Tensor> dlse,
                                               double scale, int64_t low, int64_t high) {
  return hopper_backward(false, dout, q, k, v, out, lse, dlse, scale, low, high);
}

std::tuple<Tensor, Tensor, Tensor> ws_backward_deterministic(const Tensor& dout, const Tensor& q, const Tensor& k,
                                                             const Tensor& v, const Tensor& out, const Tensor& lse,
                                                             std::optional<Tensor> dlse, double scale, int64_t low,
                                                             int64_t high) {
  return hopper_backward(true, dout, q, k, v, out, lse, dlse, scale, low, high);
}

}  // namespace
}  // namespace attn

STABLE_TORCH_LIBRARY_FRAGMENT(attn_tiled, library) {
  library.def(
      "ws_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? dlse, float scale, "
      "int low, int high) -> (Tensor dq, Tensor dk, Tensor dv)");
  library.def(
      "ws_backward_deterministic(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? dlse, "
      "float scale, int low, int high) -> (Tensor dq, Tensor dk, Tensor dv)");
}

STABLE_TORCH_LIBRARY_IMPL(attn_tiled, CUDA, library) {
  library.impl("ws_backward", TORCH_BOX(&attn::ws_backward));
  library.impl("ws_backward_deterministic", TORCH_BOX(&attn::ws_backward_deterministic));
}
