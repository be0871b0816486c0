"""The forward kernel of ``tiled-async`` with other tiles than the rung's: built beside it, checked and timed.

``forward.sh`` beside this runs it, step by step, and ``README.md`` says what each candidate should bring.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]
sys.path[:0] = [str(ROOT), str(HERE.parent), str(HERE)]  # run as a script from anywhere

import candidates  # noqa: E402
import hopper  # noqa: E402

from attn_impls.problem import Problem  # noqa: E402
from attn_impls.tiled import ops  # noqa: E402


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel to time.

    Attributes:
        name: its operator, ``attn_tuning::<name>``.
        tiles: the arguments of ``ForwardTiles``, the first of which is the head dimension.
    """

    name: str
    tiles: str

    @property
    def width(self) -> int:
        """The widest head that its tiles hold."""
        return int(self.tiles.split(",")[0])


# columns, row pieces a warp, warps, keys a tile, blocks a multiprocessor
VARIANTS = (
    Variant("d64_k64", "64, 2, 4, 64, 2"),
    Variant("d64_k96", "64, 2, 4, 96, 2"),
    Variant("d64_k128", "64, 2, 4, 128, 2"),
    Variant("d64_k48_3blocks", "64, 2, 4, 48, 3"),
    Variant("d64_k128_8warps", "64, 2, 8, 128, 1"),
    Variant("d64_k64_48rows", "64, 3, 4, 64, 2"),
    Variant("d128_k48", "128, 2, 4, 48, 2"),
    Variant("d128_k48_16rows_3blocks", "128, 1, 4, 48, 3"),
    Variant("d128_k64_8warps", "128, 2, 8, 64, 1"),
)
WIDTHS = (64, 128)
PEER, RUNG = "flash-attn", "tiled-async"
SOURCE = """#include <torch/csrc/stable/library.h>

#include <tuple>
#include <type_traits>

#include "async_forward.h"
#include "tensor_core_arguments.h"

namespace attn {{
struct {name} : ForwardTiles<{tiles}> {{}};

static std::tuple<Tensor, Tensor> run_{name}(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                                             int64_t low, int64_t high) {{
  ATTN_CHECK(q.scalar_type() == ScalarType::BFloat16 && q.size(3) <= {name}::kColumns,
                  "built for bfloat16 and heads of at most ", {name}::kColumns);
  const auto start = []<typename T>(const Tensor& on, const ForwardParams<T>& params) {{
    if constexpr (std::is_same_v<T, __nv_bfloat16>) launch_async_forward<T, {name}>(on, params);
  }};
  return tensor_core_forward(q, k, v, scale, low, high, start);
}}
}}  // namespace attn
STABLE_TORCH_LIBRARY_FRAGMENT(attn_tuning, library) {{
  library.def("{name}(Tensor q, Tensor k, Tensor v, float scale, int low, int high) -> (Tensor out, Tensor lse)");
}}
STABLE_TORCH_LIBRARY_IMPL(attn_tuning, CUDA, library) {{
  library.impl("{name}", TORCH_BOX(&attn::run_{name}));
}}
"""


def source(variant: Variant) -> str:
    """Return the source of the variant's operator, for bfloat16."""
    return SOURCE.format(name=variant.name, tiles=variant.tiles)


def call_of(variant: Variant) -> hopper.Call:
    """Return the variant's operator as a function of tensors and a problem."""
    operator = getattr(torch.ops.attn_tuning, variant.name)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        diagonals = ops.diagonals(problem.mask, problem.q_len, problem.kv_len)
        out, lse = operator(q, k, v, problem.softmax_scale, *diagonals)
        return out, lse

    return call


def check(variant: Variant) -> int:
    """Compare the variant with attention in fp32, and its launches with each other. Returns how many checks fail."""

    def takes(problem: Problem) -> bool:
        return problem.dtype == "bf16" and (64 if variant.width > 64 else 0) < problem.head_dim <= variant.width

    call = call_of(variant)
    return hopper.check_numbers(variant.name, call, takes) + hopper.check_launches(variant.name, call, variant.width)


def flash_attn() -> Callable[..., object]:
    """Return FlashAttention-2 past autograd, which the candidates are timed without as well."""
    from flash_attn.flash_attn_interface import _flash_attn_forward

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> object:
        causal = problem.mask.kind == "causal"
        tensors = (x.transpose(1, 2) for x in (q, k, v))
        return _flash_attn_forward(*tensors, 0.0, problem.softmax_scale, causal, -1, -1, 0.0, None, False)

    return call


def measure(_given: list[str], wrong: set[str]) -> None:
    """Time all variants over ``fa-paper`` beside flash-attn and the registered rung."""
    at_every_length: candidates.Functions = {PEER: flash_attn()}
    if RUNG not in wrong:
        at_every_length[RUNG] = hopper.call_of(RUNG)
    for width in WIDTHS:
        tried = {x.name: call_of(x) for x in VARIANTS if x.width == width and x.name not in wrong}
        candidates.compare(width, lambda _, tried=tried: at_every_length | tried, [PEER], RUNG)


def main(arguments: list[str]) -> int:
    """Do one step, as ``candidates.sh`` asks."""
    by_name = {variant.name: variant for variant in VARIANTS}
    texts = {name: source(variant) for name, variant in by_name.items()}
    like = hopper.ASYNC_FORWARD.extension
    return candidates.run(arguments, texts, like, lambda name: check(by_name[name]), measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
