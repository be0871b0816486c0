"""Candidates for the forward of ``tiled-hopper``: tiles and orders, built beside the rung, checked and timed.

They are the tiles that the rung chooses from; what else was tried is in ``docs/kernel-notes.md``.

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
    """

    name: str
    tiles: str

    @property
    def width(self) -> int:
        """The widest head that its tiles hold."""
        return int(self.tiles.split(",")[0])


# columns, warpgroups, keys a tile, places for keys, places for queries, overlaps, inner
VARIANTS = (
    Variant("d64_3x128_inner", "64, 3, 128, 4, 2, true, true"),
    Variant("d64_3x128_apart", "64, 3, 128, 4, 2, false"),
    Variant("d128_3x128_apart", "128, 3, 128, 2, 2, false"),
    Variant("d256_2x80", "256, 2, 80, 2, 1"),
)

# By mask, how many rounds of all multiprocessors make a section, as ``csrc/hopper/schedule.h`` says: the last argument
# of each operator. The first is that of tiled-hopper.
ROUNDS = {
    FULL: {"": 0, "2 rounds": 2},
    CAUSAL: {"": 2, "1 round": 1, "4 rounds": 4},
}
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
Speeds = dict[tuple[bool, int], float]  # TFLOP/s by (is causal, length)
SOURCE = """#include <torch/csrc/stable/library.h>

#include "persistent_forward.h"

namespace attn {{
struct {name} : PersistentTiles<{tiles}> {{}};

static std::tuple<Tensor, Tensor> run_{name}(const Tensor& q_given, const Tensor& k_given, const Tensor& v_given,
                                             double scale, int64_t low, int64_t high, int64_t rounds) {{
  STD_TORCH_CHECK(q_given.scalar_type() == ScalarType::BFloat16 && q_given.size(3) <= {name}::kColumns,
                  "built for bfloat16 and heads of at most ", {name}::kColumns);
  const auto run = [&](const Shape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                       const Tensor& lse) {{
    launch_persistent_forward<__nv_bfloat16, {name}>(shape, q, k, v, out, lse, scale, Band::from_diagonals(low, high),
                                                     static_cast<int>(rounds));
  }};
  return with_hopper_tensors(q_given, k_given, v_given, scale, run);
}}
}}  // namespace attn
STABLE_TORCH_LIBRARY_FRAGMENT(attn_tuning, library) {{
  library.def("{name}(Tensor q, Tensor k, Tensor v, float scale, int low, int high, int rounds) "
              "-> (Tensor out, Tensor lse)");
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


def call_of(variant: Variant, rounds: int) -> hopper.Call:
    """Return the variant's operator as a function of tensors and a problem."""
    operator = getattr(torch.ops.attn_tuning, variant.name)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
        diagonals = ops.diagonals(problem.mask, problem.q_len, problem.kv_len)
        out, lse = operator(q, k, v, problem.softmax_scale, *diagonals, rounds)
        return out, lse

    return call


def check(variant: Variant) -> int:
    """Compare the variant with attention in fp32, in every order for masks."""
    narrower = {64: 0, 128: 64, 256: 128}[variant.width]

    def takes(problem: Problem) -> bool:
        return problem.dtype == "bf16" and narrower < problem.head_dim <= variant.width

    wrong = 0
    for name, rounds in ROUNDS[CAUSAL].items():
        call = call_of(variant, rounds)
        wrong += hopper.check_numbers(f"{variant.name} {name}", call, takes)
        wrong += hopper.check_launches(f"{variant.name} {name}", call, variant.width)
    return min(wrong, 99)


def measure(width: int, peers: list[str], wrong: set[str]) -> None:
    """Print TFLOP/s of all variants and orders over ``fa-paper`` at this head dim, and ratios to the best peer."""
    registry = discover()
    for peer in list(peers):
        if why := registry[peer].why_unavailable("cuda"):
            print(f"{peer} is left out: {why}")
            peers.remove(peer)
    if not peers:
        raise SystemExit("no peer is left to compare with")
    speed: dict[str, Speeds] = {}
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
                for name, rounds in ROUNDS[mask].items():
                    functions[f"{variant.name} {name}".strip()] = call_of(variant, rounds)
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
    _print_tables(width, speed, peers)


def _print_tables(width: int, speed: dict[str, Speeds], peers: list[str]) -> None:
    """Print one line a name, best first, and one a point, with the fastest candidate and what tiled-hopper reaches."""
    points = [(masked, length) for masked in (False, True) for length in LENGTHS]
    best = {at: max(speed.get(peer, {}).get(at, 0.0) for peer in peers) for at in points}
    print(f"\nd{width}, forward, bf16. Ratio to the best of {', '.join(peers)}: full, causal, causal up to 1024;")
    print(f"least full, causal. Then TFLOP/s at {' '.join(map(str, LENGTHS))}, full and causal.")
    parts = [points[:6], points[6:], points[6:8]]

    def cell(reduced: Callable[[list[float]], float], cells: Speeds, part: list[tuple[bool, int]]) -> str:
        ratios = [cells[at] / best[at] for at in part if at in cells]
        return f"{reduced(ratios):5.3f}" if ratios else "    -"

    def mean(cells: Speeds) -> float:
        return statistics.geometric_mean([cells[at] / best[at] for at in cells])

    for name, cells in sorted(speed.items(), key=lambda item: -mean(item[1])):
        ratios = [cell(statistics.geometric_mean, cells, part) for part in parts]
        ratios += [cell(min, cells, part) for part in parts[:2]]
        numbers = [f"{cells[at]:4.0f}" if at in cells else "   -" for at in points]
        print(f"{name:30s} {' '.join(ratios)}  {' '.join(numbers[:6])} | {' '.join(numbers[6:])}", flush=True)

    print("\nPoint by point: the best peer, tiled-hopper's ratio to it, and the three fastest of ours.")
    for at in points:
        ranked = sorted((name for name in speed if at in speed[name]), key=lambda name: -speed[name][at])
        fastest = next(name for name in ranked if name in peers)
        ours = [f"{name} {speed[name][at] / best[at]:.3f}" for name in ranked if name not in peers]
        top = speed.get("tiled-hopper", {}).get(at, 0.0) / best[at]
        said = f"{'causal' if at[0] else 'full'} {at[1]}: {fastest} {best[at]:.0f}; tiled-hopper {top:.3f}"
        print(f"d{width} {said}; {', '.join(ours[:3])}", flush=True)


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
