"""Candidates for the forward of ``tiled-hopper``: tiles and orders, built beside the rung, checked and timed.

They are the tiles that the rung chooses from; what else was tried is in ``docs/kernel-notes.md``.

``hopper_forward.sh`` beside this runs it, step by step; ``time FOLDER`` takes WIDTH PEER... besides.
``docs/kernel-notes.md`` says what each should bring, and what it brought.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]
sys.path[:0] = [str(ROOT), str(HERE.parent), str(HERE)]  # run as a script from anywhere

import candidates  # noqa: E402
import hopper  # noqa: E402

from attn_impls.problem import CAUSAL, FULL, Problem  # noqa: E402
from attn_impls.registry import discover  # noqa: E402
from attn_impls.tiled import HOPPER, ops  # noqa: E402


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel to time.

    Attributes:
        name: its operator, ``attn_tuning::<name>``.
        tiles: the template arguments of ``PersistentTiles``, the first of which is the head dimension.
    """

    name: str
    tiles: str

    @property
    def width(self) -> int:
        """The widest head that its tiles hold."""
        return int(self.tiles.split(",")[0])


# columns, warpgroups, keys a tile, places for keys, places for queries, overlaps, inner, halves
VARIANTS = (
    Variant("d64_3x128_inner", "64, 3, 128, 4, 2, true, true"),
    Variant("d64_3x128_apart", "64, 3, 128, 4, 2, false"),
    Variant("d64_3x128_apart_halves", "64, 3, 128, 4, 2, false, false, true"),
    Variant("d64_4x64_apart", "64, 4, 64, 8, 2, false"),
    Variant("d64_4x96_apart", "64, 4, 96, 4, 2, false"),
    Variant("d128_3x128_apart", "128, 3, 128, 2, 2, false"),
    Variant("d128_3x64_apart", "128, 3, 64, 4, 2, false"),
    Variant("d128_3x128_apart_halves", "128, 3, 128, 2, 2, false, false, true"),
    Variant("d256_2x80", "256, 2, 80, 2, 1"),
)

# By mask, the order: how many rounds of all multiprocessors make a section, and whether heads lead it one by one, as
# ``csrc/hopper/schedule.h`` says. Of those for a mask tiled-hopper has the second where fewest queries read each key,
# the first where few do, and else the last.
ORDERS = {
    FULL: {"": (0, False)},
    CAUSAL: {"": (2, True), "1 round": (1, True), "not led": (2, False)},
}
SOURCE = """#include <torch/csrc/stable/library.h>

#include "persistent_forward.h"

namespace attn {{
struct {name} : PersistentTiles<{tiles}> {{}};

static std::tuple<Tensor, Tensor> run_{name}(const Tensor& q_given, const Tensor& k_given, const Tensor& v_given,
                                             double scale, int64_t low, int64_t high, int64_t rounds, bool leads) {{
  ATTN_CHECK(q_given.scalar_type() == ScalarType::BFloat16 && q_given.size(3) <= {name}::kColumns,
                  "built for bfloat16 and heads of at most ", {name}::kColumns);
  const auto run = [&](const Shape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                       const Tensor& lse) {{
    launch_persistent_forward<__nv_bfloat16, {name}>(shape, q, k, v, out, lse, scale, Band::from_diagonals(low, high),
                                                     Order{{static_cast<int>(rounds), leads}});
  }};
  return with_hopper_tensors(q_given, k_given, v_given, scale, run);
}}
}}  // namespace attn
STABLE_TORCH_LIBRARY_FRAGMENT(attn_tuning, library) {{
  library.def("{name}(Tensor q, Tensor k, Tensor v, float scale, int low, int high, int rounds, bool leads) "
              "-> (Tensor out, Tensor lse)");
}}
STABLE_TORCH_LIBRARY_IMPL(attn_tuning, CUDA, library) {{
  library.impl("{name}", TORCH_BOX(&attn::run_{name}));
}}
"""


def call_of(variant: Variant, order: tuple[int, bool]) -> hopper.Call:
    """Return the variant's operator as a function of tensors and a problem."""
    operator = getattr(torch.ops.attn_tuning, variant.name)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        diagonals = ops.diagonals(problem.mask, problem.q_len, problem.kv_len)
        out, lse = operator(q, k, v, problem.softmax_scale, *diagonals, *order)
        return out, lse

    return call


def check(variant: Variant) -> int:
    """Compare the variant with attention in fp32, in every order for masks."""
    narrower = {64: 0, 128: 64, 256: 128}[variant.width]

    def takes(problem: Problem) -> bool:
        return problem.dtype == "bf16" and narrower < problem.head_dim <= variant.width

    wrong = 0
    for name, order in ORDERS[CAUSAL].items():
        call = call_of(variant, order)
        wrong += hopper.check_numbers(f"{variant.name} {name}", call, takes)
        wrong += hopper.check_launches(f"{variant.name} {name}", call, variant.width)
    return wrong


def measure(width: int, peers: list[str], wrong: set[str]) -> None:
    """Time all variants and orders over ``fa-paper`` at this head dim, beside rungs and the peers that are there."""
    registry = discover()
    for peer in list(peers):
        if why := registry[peer].why_unavailable("cuda"):
            print(f"{peer} is left out: {why}")
            peers.remove(peer)
    if not peers:
        raise SystemExit("no peer is left to compare with")

    def functions_of(problem: Problem) -> candidates.Functions:
        functions: candidates.Functions = {peer: registry[peer] for peer in peers}
        functions |= {rung: hopper.call_of(rung) for rung in ("tiled-overlap", "tiled-hopper") if rung not in wrong}
        for variant in VARIANTS:
            if variant.width != width or variant.name in wrong:
                continue
            for name, order in ORDERS[problem.mask].items():
                functions[f"{variant.name} {name}".strip()] = call_of(variant, order)
        return functions

    candidates.compare(width, functions_of, peers, "tiled-hopper")


def main(arguments: list[str]) -> int:
    """Do one step, as ``candidates.sh`` asks."""
    by_name = {variant.name: variant for variant in VARIANTS}
    texts = {name: SOURCE.format(name=name, tiles=variant.tiles) for name, variant in by_name.items()}

    def time(given: list[str], wrong: set[str]) -> None:
        ops.load(HOPPER)
        measure(int(given[0]), given[1:], wrong)

    return candidates.run(arguments, texts, HOPPER.extension, lambda name: check(by_name[name]), time)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
