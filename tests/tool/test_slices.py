"""Slices of a long problem: what is exact, noisy and scattered there is what it is in the whole."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attn_impls.implementation import Capabilities, Implementation
from attn_impls.masks import visible
from attn_impls.naive import naive
from attn_impls.problem import CAUSAL, FULL, Direction, Mask, Problem
from pytest_attn.correctness import slices
from pytest_attn.correctness.budget import TensorVerdict
from pytest_attn.correctness.case import Case, make_tensors
from pytest_attn.correctness.oracle import rows_that_see, solve
from pytest_attn.correctness.running import run
from pytest_attn.correctness.slices import cut_rows, naive_of_keys, slice_standard
from pytest_attn.perf import check
from pytest_attn.perf.measure import measure
from tests.tool.quick import CPU, QUICK

TOP_LEFT = Mask("causal_top_left")
MASKS = (FULL, CAUSAL, TOP_LEFT, Mask("window", 5, 0), Mask("window", 3, 4), Mask("window", None, 2))
SHAPES = ((40, 40), (40, 29), (29, 40))
PROBLEMS = [Problem(2, 4, 2, q, k, 8, "bf16", mask) for mask in MASKS for q, k in SHAPES] + [
    Problem(1, 2, 1, 40, 40, 8, "fp32", CAUSAL, 2.0, 0.7),
    Problem(1, 2, 1, 40, 40, 8, "bf16", CAUSAL, 2.0, 0.7),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
@pytest.mark.parametrize("most_scores", [40, 2**20])
def test_keys_are_what_they_are_among_all(problem: Problem, most_scores: int) -> None:
    tensors = make_tensors(Case(problem), CPU)
    whole = solve(problem, tensors, gradients=True)
    for keys in (slice(problem.kv_len - 7, problem.kv_len), slice(11, 19), slice(0, 1)):
        some = solve(problem, tensors, gradients=True, keys=keys, most_scores=most_scores)
        assert set(some.exact) == {"dk", "dv"}
        assert (some.terms, some.by_log_scale, some.by_exp) == (whole.terms, {}, {})
        for kind in ("exact", "noise", "scatter"):
            for name, got in getattr(some, kind).items():
                # What a query that sees none of the keys adds to the noise is nothing; to its square, the underflow's.
                want = getattr(whole, kind)[name][:, :, keys]
                torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_rows_are_what_they_are_among_all(problem: Problem) -> None:
    tensors = make_tensors(Case(problem), CPU)
    whole = solve(problem, tensors, gradients=True)
    seeing = rows_that_see(problem, slice(0, problem.kv_len))
    for rows in (slice(problem.q_len - 7, problem.q_len), slice(seeing.start, seeing.start + 4), slice(13, 21)):
        part, inputs, _ = cut_rows(problem, tensors, rows)
        some = solve(part, inputs, gradients=True)
        for name in ("out", "lse", "dq"):
            got, want = some.exact[name], whole.exact[name][:, :, rows]
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14, msg=lambda text, n=name: f"{n}: {text}")
            for kind in ("noise", "scatter"):
                # Keys that no query of the slice sees are no terms of its float32 sums.
                got, want = getattr(some, kind)[name], getattr(whole, kind)[name][:, :, rows]
                assert (got <= want * (1 + 1e-12)).all(), (kind, name)
                assert (got >= want * 0.3).all(), (kind, name)


def test_rows_that_see_no_key_are_no_problem() -> None:
    problem = Problem(1, 1, 1, 40, 10, 8, "bf16", CAUSAL)
    assert rows_that_see(problem, slice(0, 10)) == slice(30, 40)
    with pytest.raises(ValueError, match=r"the queries 0 to 29 of .* see no key$"):
        cut_rows(problem, make_tensors(Case(problem), CPU), slice(0, 30))


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_rows_that_see_a_range_of_keys(problem: Problem) -> None:
    every = visible(problem, CPU)
    for keys in (slice(0, 3), slice(11, 19), slice(problem.kv_len - 2, problem.kv_len), slice(0, problem.kv_len)):
        rows = rows_that_see(problem, keys)
        sees = [every is None or bool(every[row, keys].any()) for row in range(problem.q_len)]
        assert sees == [rows.start <= row < rows.stop for row in range(problem.q_len)]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
@pytest.mark.parametrize("most_scores", [1, 1000])
def test_naive_in_parts_errs_hardly_more_than_naive(problem: Problem, most_scores: int) -> None:
    tensors = make_tensors(Case(problem), CPU)
    exact = solve(problem, tensors, gradients=True).exact
    whole = run(naive, problem, tensors, Direction.BWD)
    keys = slice(5, 25)
    parts = naive_of_keys(problem, tensors, keys, most_scores=most_scores)
    for name, got in parts.items():
        want = exact[name][:, :, keys]
        error, naive_error = ((t - want).square().mean().sqrt() for t in (got, whole[name][:, :, keys]))
        assert 0.5 * naive_error <= error <= 1.5 * naive_error, (name, float(error), float(naive_error))


Spoil = Callable[[dict[str, torch.Tensor]], object]


def judged(problem: Problem, spoil: Spoil = lambda got: None, pick: int | None = None) -> list[TensorVerdict]:
    tensors = make_tensors(Case(problem), CPU)
    got = {name: tensor.detach().clone() for name, tensor in run(naive, problem, tensors, Direction.BWD).items()}
    spoil(got)
    place = None if pick is None else random.Random(pick)
    return slice_standard(problem, tensors, gradients=True, pick=place).judge(got)


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.id)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_right_result_passes_wherever_it_is_judged(mask: Mask, dtype: str) -> None:
    for pick, (q_len, kv_len) in ((None, (300, 450)), (0, (450, 300)), (1, (400, 400))):
        verdicts = judged(Problem(1, 2, 1, q_len, kv_len, 16, dtype, mask), pick=pick)
        assert [verdict.name for verdict in verdicts] == ["out", "dq", "dk", "dv"]
        assert all(verdict.ok for verdict in verdicts), verdicts


@pytest.mark.parametrize("name", ["out", "dq", "dk", "dv"])
@pytest.mark.parametrize("mask", [FULL, CAUSAL], ids=lambda mask: mask.id)
def test_the_end_of_each_result_is_judged(name: str, mask: Mask) -> None:
    def last_row(got: dict[str, torch.Tensor]) -> None:
        got[name][..., -1, :] = 0

    verdicts = judged(Problem(1, 2, 1, 300, 300, 16, "bf16", mask), last_row)
    assert {verdict.name for verdict in verdicts if not verdict.ok} == {name}


@pytest.mark.parametrize("name", ["out", "dq", "dk", "dv"])
def test_another_place_is_judged_where_it_is_asked_for(name: str) -> None:
    problem = Problem(1, 1, 1, 500, 500, 16, "bf16", FULL)

    def but_for_the_end(got: dict[str, torch.Tensor]) -> None:
        got[name][..., : 500 - 256, :] *= 0.9

    assert all(verdict.ok for verdict in judged(problem, but_for_the_end))
    assert {verdict.name for verdict in judged(problem, but_for_the_end, pick=0) if not verdict.ok} == {name}


def test_memory_and_work_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No matrix is larger than a slice, and queries that see none of the judged keys are left out."""
    seen: list[int] = []
    real = torch.exp

    def exp(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor.numel())
        return real(tensor)

    monkeypatch.setattr(torch, "exp", exp)
    monkeypatch.setattr(slices, "_MOST_SCORES", 2**17)
    assert all(verdict.ok for verdict in judged(Problem(1, 2, 1, 1500, 1500, 8, "bf16", CAUSAL)))
    assert max(seen) <= 2**17
    # 43 queries of two heads against all keys, then the 256 that see the last 256 keys.
    assert sum(seen) == 2 * 1500 * (2**17 // 3000 + 256)


def remembers(fn: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Give the result of the first call for the same memory again."""
    kept: dict[int, torch.Tensor] = {}

    def attention(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        if q.data_ptr() not in kept:
            kept[q.data_ptr()] = fn(q, k, v, problem)
        return kept[q.data_ptr()]

    return attention


def drops_a_tile(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
    return naive(q, k, torch.cat([v[:, :, :-64], torch.zeros_like(v[:, :, -64:])], dim=2), problem)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("fn", "direction", "reason"),
    [
        *((naive.fn, direction, None) for direction in Direction),
        *((drops_a_tile, direction, "wrong result: the error is") for direction in Direction),
        (lambda q, k, v, problem: torch.zeros_like(q), Direction.FWD, "wrong result: the error is"),
        (remembers(naive.fn), Direction.FWD, "wrong result after the timing, on other inputs: the error is"),
    ],
)
def test_a_long_problem_is_judged_where_it_is_timed(
    fn: Any, direction: Direction, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_MOST_WHOLE", 299 * 300)
    impl = Implementation("mine", fn, Capabilities(gqa=True))
    record = measure(impl, Problem(1, 2, 1, 300, 300, 16, "fp32", CAUSAL), direction, CPU, QUICK)
    assert record.status == ("ok" if reason is None else "error")
    assert str(record.reason).startswith(str(reason))
    assert (record.accuracy is not None) == (reason is None)


def test_another_place_of_a_long_problem_is_judged_after_the_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_MOST_WHOLE", 599 * 600)

    def only_the_end(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        out: torch.Tensor = naive(q, k, v, problem)
        out[:, :, : 600 - 256] = 0
        return out

    problem = Problem(1, 1, 1, 600, 600, 16, "fp32", CAUSAL)
    record = measure(Implementation("mine", only_the_end), problem, Direction.FWD, CPU, QUICK)
    assert str(record.reason).startswith("wrong result after the timing")
