"""Candidates for the forward of ``tiled-hopper``: tiles and schedules, built beside the rung, checked and timed.

``hopper_forward.sh`` beside this runs it: ``names``, ``build FOLDER``, ``check FOLDER NAME`` and ``time FOLDER WIDTH
PEER...``, which leaves out the names in ``FOLDER/wrong``. ``docs/kernel-notes.md`` says what each should bring, and
what it brought.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]
sys.path[:0] = [str(ROOT), str(HERE.parent)]  # run as a script from anywhere

import hopper  # noqa: E402

from attn_impls.problem import CAUSAL, FULL, Direction, Problem  # noqa: E402
from attn_impls.registry import discover  # noqa: E402
from attn_impls.tiled import HOPPER, build, ops  # noqa: E402
from attn_impls.tiled.resources import resource_usage  # noqa: E402


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel to time.

    Attributes:
        name: its operator, ``attn_tuning::<name>``.
        tiles: the template arguments of ``PersistentTiles``, the first of which is the head dimension.
        schedules: whether to time it in every order of :data:`SCHEDULES`, and not in the first alone.
    """

    name: str
    tiles: str
    schedules: bool = False

    @property
    def width(self) -> int:
        """The widest head that its tiles hold."""
        return int(self.tiles.split(",")[0])


# columns, warpgroups, keys a tile, places for keys, places for queries, turns; one weight in n by polynomial; overlaps;
# halves
VARIANTS = (
    Variant("d64_3x128", "64, 3, 128, 4, 2, false"),
    Variant("d64_3x128_halves", "64, 3, 128, 4, 2, false, 0, true, true"),
    Variant("d64_3x128_poly4", "64, 3, 128, 4, 2, false, 4"),
    Variant("d64_2x128_turns", "64, 2, 128, 4, 2, true"),
    Variant("d64_2x128_turns_halves", "64, 2, 128, 4, 2, true, 0, true, true", schedules=True),
    Variant("d64_2x128_halves", "64, 2, 128, 4, 2, false, 0, true, true"),
    Variant("d64_2x128_turns_poly4", "64, 2, 128, 4, 2, true, 4"),
    Variant("d64_2x192_turns", "64, 2, 192, 3, 2, true"),
    Variant("d128_2x128", "128, 2, 128, 2, 2, false"),
    Variant("d128_2x128_turns", "128, 2, 128, 2, 2, true"),
    Variant("d128_2x128_turns_halves", "128, 2, 128, 2, 2, true, 0, true, true", schedules=True),
    Variant("d128_2x160_turns", "128, 2, 160, 2, 2, true"),
    Variant("d128_2x176_turns", "128, 2, 176, 2, 1, true"),
    Variant("d128_3x128_apart", "128, 3, 128, 2, 2, false, 0, false"),
    Variant("d256_2x80", "256, 2, 80, 2, 1, false", schedules=True),
    Variant("d256_2x64", "256, 2, 64, 2, 1, false"),
    Variant("d256_2x64_turns", "256, 2, 64, 2, 1, true"),
)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How query tiles are shared out, as ``csrc/hopper/schedule.h`` says: the last arguments of each operator."""

    section_bytes: int
    fetched: bool
    persistent: bool


# By mask; the first is that of tiled-hopper.
SCHEDULES = {
    FULL: {
        "": Schedule(0, fetched=False, persistent=True),
        "fetched": Schedule(0, fetched=True, persistent=True),
        "blocks": Schedule(0, fetched=False, persistent=False),
    },
    CAUSAL: {
        "": Schedule(8 << 20, fetched=True, persistent=True),
        "fetched-0M": Schedule(0, fetched=True, persistent=True),
        "fetched-32M": Schedule(32 << 20, fetched=True, persistent=True),
        "dealt-0M": Schedule(0, fetched=False, persistent=True),
        "blocks": Schedule(0, fetched=False, persistent=False),
    },
}
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
SOURCE = """#include <torch/csrc/stable/library.h>

#include "persistent_forward.h"

namespace attn {{
struct {name} : PersistentTiles<{tiles}> {{}};

static std::tuple<Tensor, Tensor> run_{name}(const Tensor& q_given, const Tensor& k_given, const Tensor& v_given,
                                             double scale, int64_t low, int64_t high, int64_t section_bytes,
                                             bool fetched, bool persistent) {{
  STD_TORCH_CHECK(q_given.scalar_type() == ScalarType::BFloat16 && q_given.size(3) <= {name}::kColumns,
                  "built for bfloat16 and heads of at most ", {name}::kColumns);
  const auto run = [&](const Shape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                       const Tensor& lse) {{
    launch_persistent_forward<__nv_bfloat16, {name}>(shape, q, k, v, out, lse, scale, Band::from_diagonals(low, high),
                                                     {{section_bytes, fetched, persistent}});
  }};
  return with_hopper_tensors(q_given, k_given, v_given, scale, run);
}}
}}  // namespace attn
STABLE_TORCH_LIBRARY_FRAGMENT(attn_tuning, library) {{
  library.def("{name}(Tensor q, Tensor k, Tensor v, float scale, int low, int high, int section_bytes, bool fetched, "
              "bool persistent) -> (Tensor out, Tensor lse)");
}}
STABLE_TORCH_LIBRARY_IMPL(attn_tuning, CUDA, library) {{
  library.impl("{name}", TORCH_BOX(&attn::run_{name}));
}}
"""


def extension(folder: Path) -> build.Extension:
    """Return the library of all variants, their sources written to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = tuple(folder / f"{variant.name}.cu" for variant in VARIANTS)
    for path, variant in zip(sources, VARIANTS, strict=True):
        text = SOURCE.format(name=variant.name, tiles=variant.tiles)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    hopper_folder = build.CSRC / "hopper"
    return build.Extension(
        "attn_tuning_hopper",
        sources=sources,
        folders=HOPPER.extension.folders,
        cuda_cflags=(*HOPPER.extension.cuda_cflags, f"-I{hopper_folder}"),
        architecture=HOPPER.extension.architecture,
    )


def call_of(variant: Variant, schedule: Schedule) -> hopper.Call:
    """Return the variant's operator as a function of tensors and a problem."""
    operator = getattr(torch.ops.attn_tuning, variant.name)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        diagonals = ops.diagonals(problem.mask, problem.q_len, problem.kv_len)
        order = (schedule.section_bytes, schedule.fetched, schedule.persistent)
        out, lse = operator(q, k, v, problem.softmax_scale, *diagonals, *order)
        return out, lse

    return call


def check(variant: Variant) -> int:
    """Compare the variant with attention in fp32, in the order for masks and, where it is timed so, in every other."""
    narrower = {64: 0, 128: 64, 256: 128}[variant.width]

    def takes(problem: Problem) -> bool:
        return problem.dtype == "bf16" and narrower < problem.head_dim <= variant.width

    wrong = 0
    tried = list(SCHEDULES[CAUSAL].items())
    for name, schedule in tried if variant.schedules else tried[:1]:
        call = call_of(variant, schedule)
        wrong += hopper.check_numbers(f"{variant.name} {name}", call, takes)
        wrong += hopper.check_launches(f"{variant.name} {name}", call, variant.width)
    return min(wrong, 99)


def measure(width: int, peers: list[str], wrong: set[str]) -> None:
    """Print TFLOP/s of all variants and orders over ``fa-paper`` at this head dim, and ratios to the best peer."""
    registry = discover()
    speed: dict[str, dict[tuple[bool, int], float]] = {}
    for mask in (FULL, CAUSAL):
        for length in LENGTHS:
            problem = Problem(16384 // length, 2048 // width, 2048 // width, length, length, width, "bf16", mask)
            torch.manual_seed(0)
            qkv = [hopper.tensor(problem.batch, problem.heads, length, problem, "bshd") for _ in range(3)]
            functions: dict[str, Callable[..., object]] = {peer: registry[peer] for peer in peers}
            functions |= {rung: hopper.call_of(rung) for rung in ("tiled-overlap", "tiled-hopper") if rung not in wrong}
            for variant in VARIANTS:
                if variant.width != width or variant.name in wrong:
                    continue
                for name, schedule in SCHEDULES[mask].items():
                    if variant.schedules or not name:
                        functions[f"{variant.name} {name}".strip()] = call_of(variant, schedule)
            for name in list(functions):
                try:
                    functions[name](*qkv, problem)
                    torch.cuda.synchronize()
                except Exception as error:  # a peer without this case; a fault of ours would end the process
                    print(f"{name} at {problem.id}: {str(error).splitlines()[0][:150]}")
                    del functions[name]
            taken = hopper.milliseconds({name: partial(call, *qkv, problem) for name, call in functions.items()}, 15)
            for name, ms in taken.items():
                speed.setdefault(name, {})[mask is CAUSAL, length] = problem.flops(Direction.FWD) / ms / 1e9
            said = " ".join(f"{name.removeprefix(f'd{width}_')} {ms * 1e3:.0f}" for name, ms in taken.items())
            print(f"{problem.id} us: {said}", flush=True)  # stands even where a later point hangs
    best = {
        (masked, length): max(speed.get(peer, {}).get((masked, length), 0.0) for peer in peers)
        for masked in (False, True)
        for length in LENGTHS
    }
    print(
        f"\nd{width}, forward, bf16. Ratio to the best of {', '.join(peers)}: mean of all, full, causal, up to 1024; "
    )
    print(f"least. Then TFLOP/s at {' '.join(map(str, LENGTHS))}, full and causal.")
    for name, cells in sorted(speed.items(), key=lambda item: -_mean(item[1], best, lambda at: True)):
        means = [
            _mean(cells, best, wanted)
            for wanted in (lambda at: True, lambda at: not at[0], lambda at: at[0], lambda at: at[1] <= 1024)
        ]
        least = min(cells[at] / best[at] for at in cells)
        ratios = " ".join(f"{mean:5.3f}" for mean in (*means, least))
        numbers = " | ".join(
            " ".join(f"{cells.get((masked, length), 0):4.0f}" for length in LENGTHS) for masked in (False, True)
        )
        print(f"{name:32s} {ratios}  {numbers}", flush=True)


def _mean(
    cells: dict[tuple[bool, int], float],
    best: dict[tuple[bool, int], float],
    wanted: Callable[[tuple[bool, int]], bool],
) -> float:
    """Return the geometric mean of the ratios at the wanted points, 0 where there are none."""
    ratios = [cells[at] / best[at] for at in cells if wanted(at)]
    return statistics.geometric_mean(ratios) if ratios else 0.0


def main(arguments: list[str]) -> int:
    """Do one step, as ``hopper_forward.sh`` asks."""
    what, *given = arguments
    if what == "names":
        print("\n".join(variant.name for variant in VARIANTS))
        return 0
    made = extension(Path(given[0]))
    build.load(made)
    if what == "build":
        for name, usage in resource_usage(build.library(made)).items():
            print(f"{usage['registers']} registers at the start, {usage['local_bytes']} bytes of stack: {name}")
    elif what == "check":
        return check(next(variant for variant in VARIANTS if variant.name == given[1]))
    else:
        ops.load(HOPPER)
        failed = Path(given[0]) / "wrong"
        measure(int(given[1]), given[2:], set(failed.read_text().split()) if failed.exists() else set())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
