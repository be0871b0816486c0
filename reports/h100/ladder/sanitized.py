"""Small calls of implementations, for compute-sanitizer to watch: sanitized.py IMPLEMENTATION...; see sanitize.sh.

Forward, and backward in both modes where there is one, over every width of tile, masks, groups of heads and lengths
that end within a tile. Exit status 1 where a result is not finite.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic mode asks for it

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # run as a script from anywhere

from attn_impls import Direction, Implementation, Problem, discover
from attn_impls.problem import CAUSAL, FULL, Mask
from pytest_attn.correctness.case import Case, make_tensors

DEVICE = torch.device("cuda", 0)
# Every choice of tiles that tiled-hopper has; several query tiles of a head; lengths that end within a tile.
SHAPES = (
    Problem(2, 4, 2, 70, 130, 64, "bf16", CAUSAL),
    Problem(1, 2, 1, 300, 420, 64, "fp16", Mask("window", 150, 40)),
    Problem(1, 2, 2, 200, 333, 128, "bf16", FULL),
    Problem(1, 2, 1, 33, 65, 40, "fp16", FULL),
    Problem(1, 2, 2, 384, 256, 64, "fp16", FULL),
    Problem(1, 2, 2, 200, 200, 128, "bf16", CAUSAL),
    Problem(1, 2, 1, 210, 200, 128, "bf16", Mask("window", 70, 0)),
    Problem(1, 2, 1, 150, 170, 256, "fp16", CAUSAL),
    Problem(3, 50, 50, 3, 5, 64, "bf16", FULL),
)
# More query tiles than multiprocessors, for blocks that stay, with heads one by one before the last section. Hopper's
# rungs alone have such, and under racecheck those in plain fp32 would take minutes.
MANY_TILES = (
    Problem(1, 144, 8, 130, 130, 64, "bf16", CAUSAL),
    Problem(1, 300, 300, 257, 20, 64, "bf16", CAUSAL),
    Problem(1, 70, 70, 384, 128, 64, "fp16", FULL),
    Problem(1, 70, 7, 200, 200, 128, "bf16", CAUSAL),
    Problem(1, 70, 7, 210, 200, 128, "fp16", Mask("window", 70, 0)),
    Problem(1, 70, 70, 130, 90, 256, "bf16", CAUSAL),
)


def watch(impl: Implementation, problem: Problem, deterministic: bool) -> bool:
    """Call it forward, and backward where it can. Returns whether all results are finite."""
    torch.use_deterministic_algorithms(deterministic)
    tensors = make_tensors(Case(problem), DEVICE, draw_on=torch.device("cpu")).requires_grad()
    found = [impl(tensors.q, tensors.k, tensors.v, problem)]
    if impl.capabilities.why_not(problem, Direction.BWD, "cuda") is None:
        found += torch.autograd.grad(found[0], (tensors.q, tensors.k, tensors.v), tensors.dout)
    torch.cuda.synchronize()
    return all(bool(x.isfinite().all()) for x in found)


def main(names: list[str]) -> int:
    """Print a line for each call and return how many results were not finite."""
    bad = 0
    for name in names:
        impl = discover().resolve(name)
        for_hopper = (impl.capabilities.min_compute_capability or (0, 0)) >= (9, 0)
        for problem in (*SHAPES, *(MANY_TILES if for_hopper else ())):
            for deterministic in (False, True):
                if impl.capabilities.why_not(problem, Direction.FWD, "cuda") is None:
                    finite = watch(impl, problem, deterministic)
                    print(f"{name} {problem.id} {'finite' if finite else 'NOT FINITE'}", flush=True)
                    bad += not finite
    if not bad:
        print("done", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
