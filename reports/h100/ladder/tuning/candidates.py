"""What the candidates for a forward have in common: how they are built, and timed over ``fa-paper`` beside peers.

A script that has candidates calls :func:`run`, and ``candidates.sh`` calls the script, step by step.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hopper
import torch

from attn_impls.problem import CAUSAL, FULL, Direction, Problem
from attn_impls.tiled import build
from attn_impls.tiled.resources import resource_usage

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
REPEATS = 15
POINTS = [(masked, length) for masked in (False, True) for length in LENGTHS]
Speeds = dict[tuple[bool, int], float]  # TFLOP/s by (is causal, length)
Functions = dict[str, Callable[..., object]]  # of q, k, v and the problem, by name


def run(
    arguments: list[str],
    texts: dict[str, str],
    like: build.Extension,
    check: Callable[[str], int],
    measure: Callable[[list[str], set[str]], None],
) -> int:
    """Do one step: ``names``, ``build FOLDER``, ``check FOLDER NAME`` or ``time FOLDER ...``. Returns the exit status.

    Args:
        arguments: the step and what belongs to it. FOLDER holds the sources, and in ``wrong`` the names that failed.
        texts: the source of each candidate by its name.
        like: the library that they are built as, with its headers and flags.
        check: returns how many checks the candidate of that name fails.
        measure: times the candidates but those of the names that failed, given what stands after FOLDER.
    """
    what, *given = arguments
    if what == "names":
        print("\n".join(texts))
        return 0
    folder = Path(given[0])
    made = _extension(folder, texts, like)
    build.load(made)
    if what == "build":
        for name, usage in resource_usage(build.library(made)).items():
            print(f"{usage['registers']} registers at the start, {usage['local_bytes']} bytes of stack: {name}")
    elif what == "check":
        return min(check(given[1]), 99)
    else:
        failed = folder / "wrong"
        measure(given[1:], set(failed.read_text().split()) if failed.exists() else set())
    return 0


def _extension(folder: Path, texts: dict[str, str], like: build.Extension) -> build.Extension:
    """Return the library of all candidates, their sources written to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = tuple(folder / f"{name}.cu" for name in texts)
    for path, text in zip(sources, texts.values(), strict=True):
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    return build.Extension(
        f"{like.name}_tuning",
        sources=sources,
        folders=like.folders,
        cuda_cflags=(*like.cuda_cflags, *(f"-I{headers}" for headers in like.folders)),
        architecture=like.architecture,
    )


def compare(width: int, functions_of: Callable[[Problem], Functions], peers: list[str], rung: str) -> None:
    """Print TFLOP/s of all functions over ``fa-paper`` at head dim ``width``, and ratios to the best peer.

    Args:
        width: the head dimension.
        functions_of: returns what to time of a problem, the ``peers`` and the ``rung`` among them; what raises is left
            out there.
        peers: names of functions to compare with.
        rung: the name of the registered kernel that the other functions would replace.
    """
    speed: dict[str, Speeds] = {}
    for mask in (FULL, CAUSAL):
        for length in LENGTHS:
            problem = Problem(16384 // length, 2048 // width, 2048 // width, length, length, width, "bf16", mask)
            torch.manual_seed(0)
            qkv = [hopper.tensor(problem.batch, problem.heads, length, problem, "bshd") for _ in range(3)]
            functions = functions_of(problem)
            for name in list(functions):
                try:
                    functions[name](*qkv, problem)
                    torch.cuda.synchronize()
                except Exception as error:  # a peer without this case; a fault of ours would end the process
                    print(f"{name} at {problem.id}: {str(error).splitlines()[0][:150]}")
                    del functions[name]
            taken = hopper.milliseconds({name: partial(f, *qkv, problem) for name, f in functions.items()}, REPEATS)
            for name, ms in taken.items():
                speed.setdefault(name, {})[mask is CAUSAL, length] = problem.flops(Direction.FWD) / ms / 1e9
            said = " ".join(f"{name.removeprefix(f'd{width}_')} {ms * 1e3:.0f}" for name, ms in taken.items())
            print(f"{problem.id} us: {said}", flush=True)  # stands even where a later point hangs
    print_tables(width, speed, peers, rung)


def print_tables(width: int, speed: dict[str, Speeds], peers: list[str], rung: str) -> None:
    """Print one line a name, best first, and one a point, with the fastest candidates and what the rung reaches."""
    best = {at: max(speed.get(peer, {}).get(at, 0.0) for peer in peers) for at in POINTS}
    half = len(LENGTHS)
    parts = [POINTS, POINTS[:half], POINTS[half:], POINTS[half : half + 2]]
    print(f"\nd{width}, forward, bf16. Ratio to the best of {', '.join(peers)}: all, full, causal, causal up to 1024;")
    print(f"least full, causal. Then TFLOP/s at {' '.join(map(str, LENGTHS))}, full and causal.")

    def cell(reduced: Callable[[list[float]], float], cells: Speeds, part: list[tuple[bool, int]]) -> str:
        ratios = [cells[at] / best[at] for at in part if at in cells]
        return f"{reduced(ratios):5.3f}" if ratios else "    -"

    def mean(cells: Speeds) -> float:
        return statistics.geometric_mean([cells[at] / best[at] for at in cells])

    for name, cells in sorted(speed.items(), key=lambda item: -mean(item[1])):
        ratios = [cell(statistics.geometric_mean, cells, part) for part in parts]
        ratios += [cell(min, cells, part) for part in parts[1:3]]
        numbers = [f"{cells[at]:4.0f}" if at in cells else "   -" for at in POINTS]
        print(f"{name:30s} {' '.join(ratios)}  {' '.join(numbers[:half])} | {' '.join(numbers[half:])}", flush=True)

    print(f"\nPoint by point: the best peer, {rung}'s ratio to it, and the three fastest of ours.")
    for at in POINTS:
        ranked = sorted((name for name in speed if at in speed[name]), key=lambda name: -speed[name][at])
        fastest = next(name for name in ranked if name in peers)
        ours = [f"{name} {speed[name][at] / best[at]:.3f}" for name in ranked if name not in peers]
        reached = speed.get(rung, {}).get(at, 0.0) / best[at]
        said = f"{'causal' if at[0] else 'full'} {at[1]}: {fastest} {best[at]:.0f}; {rung} {reached:.3f}"
        print(f"d{width} {said}; {', '.join(ours[:3])}", flush=True)
