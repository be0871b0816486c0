"""Do 1,000 launches give the same bits while the device is busy with something else? repeat.py [IMPLEMENTATION...].

Forward, and backward in torch's deterministic mode. Beside them a second stream multiplies matrices all the time, so
that blocks start in another order and beside other blocks at every launch. Exit status 1 where any bit differs.
"""

from __future__ import annotations

import os
import sys
import time

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic mode asks for it

import torch

from attn_impls import Direction, Implementation, Problem, discover
from attn_impls.problem import CAUSAL, FULL
from pytest_attn.correctness.case import Case, Tensors, make_tensors

LAUNCHES = 1000
DEVICE = torch.device("cuda", 0)
PROBLEMS = [
    Problem(2, 1024 // width, 1024 // width, length, length, width, dtype, mask)
    for width, dtype in ((64, "bf16"), (128, "fp16"), (256, "bf16"))
    for length in (1024, 1100)
    for mask in (FULL, CAUSAL)
]


class Load:
    """A second stream that is never without work."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._matrix = torch.randn(1536, 1536, device=DEVICE, dtype=torch.bfloat16)
        self._done: list[torch.cuda.Event] = []

    def more(self) -> None:
        """Queue two products, unless those of a hundred calls are still to be done."""
        while self._done and self._done[0].query():
            self._done.pop(0)
        if len(self._done) >= 100:
            return
        with torch.cuda.stream(self._stream):
            for _ in range(2):
                self._matrix @ self._matrix
            event = torch.cuda.Event()
            event.record()
        self._done.append(event)


def launches(impl: Implementation, problem: Problem, tensors: Tensors, direction: Direction) -> int:
    """Return how many of :data:`LAUNCHES` differ from the first one in a bit."""
    if direction is Direction.FWD:

        def call() -> tuple[torch.Tensor, ...]:
            return (impl(tensors.q, tensors.k, tensors.v, problem),)

    else:
        leaves = tensors.requires_grad()
        out = impl(leaves.q, leaves.k, leaves.v, problem)

        def call() -> tuple[torch.Tensor, ...]:
            return torch.autograd.grad(out, (leaves.q, leaves.k, leaves.v), tensors.dout, retain_graph=True)

    load = Load()
    differ = torch.zeros((), dtype=torch.int64, device=DEVICE)
    first = [x.clone() for x in call()]
    for _ in range(LAUNCHES):
        load.more()
        # Bits, not numbers: a zero of another sign is another result.
        same = [(x.view(torch.int16) == y.view(torch.int16)).all() for x, y in zip(call(), first, strict=True)]
        differ += ~torch.stack(same).all()
    return int(differ)


def main(names: list[str]) -> int:
    """Print a line for each and return how many lines tell of a difference."""
    torch.use_deterministic_algorithms(True)
    bad = 0
    for name in names:
        impl = discover().resolve(name)
        for direction in (Direction.FWD, Direction.BWD):
            for problem in PROBLEMS:
                if impl.capabilities.why_not(problem, direction, "cuda") is not None:
                    continue
                begin = time.perf_counter()
                differ = launches(impl, problem, make_tensors(Case(problem), DEVICE, draw_on=DEVICE), direction)
                took = time.perf_counter() - begin
                print(f"{differ} of {LAUNCHES} differ  {name} {problem.id} {direction.value}  {took:.1f} s", flush=True)
                bad += differ > 0
    return bad


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:] or ["tiled-hopper"]) else 0)
