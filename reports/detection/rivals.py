"""The rules that other projects judge attention by, on fixed cases of N(0, 1) inputs, seed 0.

Every rival gets the same fixed list, :data:`CASES`: the axes of flash-attention's ``test_flash_attn_output``
(Dao-AILab/flash-attention 2.8, ``tests/test_flash_attn.py``: dtype, multi-head, grouped and multi-query, causal, local,
softcap, head dimensions, pairs of lengths), thinned from the full product so that each value of each axis and
each pair of mask and kind of heads occurs. Left out are what our words do not have (ALiBi, dropout), lengths above
1024, the lengths (1024, 1023), local with causal, all other tests of that suite and, of the batch of 4, half, for the
time it takes on a CPU. Layout is theirs, ``[batch, seq, heads, head_dim]``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from attn_impls import Direction, Implementation, Problem
from attn_impls.naive import naive
from attn_impls.problem import CAUSAL, FULL, Mask
from pytest_attn.correctness.case import Case, Tensors, make_tensors
from pytest_attn.correctness.running import run

Results = dict[str, torch.Tensor]
CPU = torch.device("cpu")
LENGTHS = ((113, 203), (128, 217), (113, 211), (108, 256), (256, 512), (512, 256), (1024, 1024), (1023, 1024))
HEAD_DIMS = (32, 40, 59, 64, 96, 111, 128, 160, 192, 224, 256)


def _flash_attention_cases() -> list[Problem]:
    """Return the thinned product: for each dtype each pair of lengths, with the other axes in rotation."""
    draw = random.Random(0)
    kinds = [(mask, group) for group in (1, 3, 6) for mask in ("full", "causal", "local")]
    problems = []
    for number, (lengths, dtype) in enumerate((le, dt) for le in LENGTHS for dt in ("fp16", "bf16")):
        mask_name, group = kinds[number % len(kinds)]
        window = Mask("window", draw.randrange(lengths[1]), draw.randrange(lengths[1]))
        mask = {"full": FULL, "causal": CAUSAL, "local": window}[mask_name]
        head_dim = HEAD_DIMS[number % len(HEAD_DIMS)]
        problems.append(Problem(2, 6, 6 // group, *lengths, head_dim, dtype, mask))
    # Softcap 50 needs queries of its size, and 4 heads, in theirs.
    problems += [Problem(2, 4, 4 // group, 128, 217, 64, "fp16", CAUSAL, softcap=50.0) for group in (1, 2)]
    return problems


HALF_CASES = tuple(_flash_attention_cases())
# flash-attention has no fp32; the fixed tolerances are used there too.
CASES = HALF_CASES + tuple(replace(problem, dtype="fp32") for problem in HALF_CASES[::2])


def inputs(problem: Problem) -> Tensors:
    """Return the N(0, 1) inputs of a problem, densely stored; with a softcap, queries are scaled by it, as theirs."""
    tensors = make_tensors(Case(problem), CPU)
    return tensors if problem.softcap is None else replace(tensors, q=tensors.q * problem.softcap)


@cache
def reference(problem: Problem) -> Results:
    """Return plain PyTorch in fp32, rounded to the problem's dtype at the end: ``out, lse, dq, dk, dv``."""
    wide = replace(problem, dtype="fp32")
    tensors = inputs(problem)
    exact = Tensors(tensors.q.float(), tensors.k.float(), tensors.v.float(), tensors.dout.float())
    found = run(naive, wide, exact, Direction.FWD, with_lse=True) | run(naive, wide, exact, Direction.BWD)
    found = {name: x.detach() for name, x in found.items() if name != "out with lse"}
    return {name: x if name == "lse" else x.to(tensors.q.dtype) for name, x in found.items()}


@cache
def low_precision(problem: Problem) -> Results:
    """Return plain PyTorch in the problem's own dtype, with the scale on the keys, as flash-attention's ``out_pt``."""
    tensors = inputs(problem)
    scaled = replace(problem, scale=1.0)

    def reordered(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: Problem) -> torch.Tensor:
        out: torch.Tensor = naive(q, k * problem.softmax_scale, v, scaled)
        return out

    impl = Implementation("reordered", reordered)
    return {name: x.detach() for name, x in run(impl, problem, tensors, Direction.BWD).items()}


def flash_attention_rule(got: Results, problem: Problem) -> bool:
    """``max|x - ref| <= 2 max|pt - ref|`` for the output, 3 times for gradients; the log-sum-exp is not looked at."""
    want, low = reference(problem), low_precision(problem)

    def off(a: torch.Tensor, name: str) -> float:
        return float((a - want[name]).abs().max())

    # As written there: NaN compares false, and so fails.
    judged = [name for name in ("out", "dq", "dk", "dv") if name in got]
    return all(off(got[name], name) <= (2 if name == "out" else 3) * off(low[name], name) for name in judged)


def allclose_rule(got: Results, problem: Problem) -> bool:
    """``torch.allclose(x, ref, rtol=1e-2, atol=1e-2)`` for the output, the log-sum-exp and the gradients."""
    want = reference(problem)
    return all(torch.allclose(x, want[name], rtol=1e-2, atol=1e-2) for name, x in got.items() if name in want)


def assert_close_rule(got: Results, problem: Problem) -> bool:
    """``torch.testing.assert_close(x, ref)`` with its defaults, which depend on the dtype, for the same tensors."""
    want = reference(problem)
    try:
        for name, x in got.items():
            if name in want:
                torch.testing.assert_close(x, want[name])
    except AssertionError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Rival:
    """A rule and the problems it is used on."""

    name: str
    passes: Callable[[Results, Problem], bool]
    problems: tuple[Problem, ...]


RIVALS = (
    Rival("allclose(1e-2)", allclose_rule, CASES),
    Rival("flash-attention's rule", flash_attention_rule, HALF_CASES),
    Rival("assert_close", assert_close_rule, CASES),
)


def judge_by_rivals(impl: Implementation, *, every_case: bool) -> dict[str, dict[str, Any]]:
    """Run ``impl`` on the fixed cases inside its capabilities, and return for each rival what it says.

    ``cases`` is how many it saw, ``failed`` the numbers of those it failed, from 1, and ``first`` the problem id of the
    first of them. Without ``every_case`` a rival sees no more after its first failure.
    """
    direction = Direction.BWD if impl.capabilities.backward else Direction.FWD
    said: dict[str, dict[str, Any]] = {rival.name: {"cases": 0, "failed": [], "first": None} for rival in RIVALS}
    for problem in CASES:
        if impl.capabilities.why_not(problem, direction, "cpu") is not None:
            continue
        asked = [r for r in RIVALS if problem in r.problems and (every_case or not said[r.name]["failed"])]
        got = _results(impl, problem, direction) if asked else None
        for rival in asked:
            entry = said[rival.name]
            entry["cases"] += 1
            if got is None or not rival.passes(got, problem):
                entry["failed"].append(entry["cases"])
                entry["first"] = entry["first"] or problem.id
    return said


def _results(impl: Implementation, problem: Problem, direction: Direction) -> Results | None:
    """Return what ``impl`` computes, ``None`` where it raises: a failure under any rule."""
    try:
        got = {name: x.detach() for name, x in run(impl, problem, inputs(problem), direction).items()}
        if impl.capabilities.returns_lse:
            got |= {"lse": run(impl, problem, inputs(problem), Direction.FWD, with_lse=True)["lse"]}
    except Exception:
        return None
    return got
