"""Before anything is timed: is the call that would be timed right, and how much longer does its first one take?"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from attn_impls.implementation import Implementation
from attn_impls.problem import Direction, Problem
from pytest_attn.correctness.case import Tensors
from pytest_attn.correctness.judge import WrongOutput, cut, cut_result, judge_results, poison, run
from pytest_attn.perf.memory import nbytes

# Above this many scores a head the oracle would take longer than the measurement.
_MOST_CHECKED = 4096 * 4096


class WrongResult(AssertionError):
    """The result of the call that would be timed is outside the error budget."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What two calls before the timing told.

    ``compile_s`` is the first call less the second, ``error_ratio`` the worst error over its budget (``None`` for what
    is too large to check), ``output_bytes`` the bytes of what the caller gets.
    """

    compile_s: float
    error_ratio: float | None
    output_bytes: int


def check(
    impl: Implementation, problem: Problem, tensors: Tensors, direction: Direction, device: torch.device
) -> Checked:
    """Call ``impl`` twice and judge the second result. Inputs that it changed are put back, whatever it raised.

    Raises:
        WrongResult: a value is not finite or outside the budget.
        WrongOutput: the result cannot be compared, or an input was changed.
        NotDifferentiable: a gradient is wanted and the output has none.
    """
    kept = tensors.clone()
    try:
        first_s, _ = _timed_run(impl, problem, tensors, direction, device)
        poison(tensors)
        second_s, results = _timed_run(impl, problem, tensors, direction, device)
        if (name := tensors.changed_since(kept)) is not None:
            raise WrongOutput(f"it changed its input {name}")
    except Exception:
        with contextlib.suppress(RuntimeError):  # a lost device, which is not the reason to tell
            _restore(tensors, kept)
        raise
    del kept
    for name, tensor in results.items():
        if not bool(tensor.isfinite().all()):
            raise WrongResult(f"wrong result: {name} is not finite")
    ratio = _error_ratio(results, problem, tensors)
    if ratio is not None and not ratio <= 1:
        raise WrongResult(f"wrong result: the error is {ratio:.3g} times its budget")
    return Checked(max(0.0, first_s - second_s), ratio, nbytes(_outputs(results, direction)))


def _restore(tensors: Tensors, kept: Tensors) -> None:
    for name in ("q", "k", "v", "dout"):
        getattr(tensors, name).copy_(getattr(kept, name))


def _timed_run(
    impl: Implementation, problem: Problem, tensors: Tensors, direction: Direction, device: torch.device
) -> tuple[float, dict[str, torch.Tensor]]:
    begin = time.perf_counter()
    results = run(impl, problem, tensors, direction)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin, results


def _error_ratio(results: Mapping[str, torch.Tensor], problem: Problem, tensors: Tensors) -> float | None:
    """Return the worst error over its budget on the last batch and group of heads; ``None`` for what is too large.

    The last, because that is where an offset that overflowed or a batch that was left out shows.
    """
    if problem.batch == 0 or problem.q_len * problem.kv_len > _MOST_CHECKED:
        return None
    last = (problem.batch - 1, problem.kv_heads - 1)
    part, inputs = cut(problem, tensors, *last)
    parts = {name: cut_result(problem, tensor, *last) for name, tensor in results.items()}
    return max(verdict.worst for verdict in judge_results(parts, part, inputs))


def _outputs(results: Mapping[str, torch.Tensor], direction: Direction) -> list[torch.Tensor]:
    """Return the tensors a caller gets: ``out`` forward, the gradients backward, all of them for both."""
    names = {
        Direction.FWD: ("out",),
        Direction.BWD: ("dq", "dk", "dv"),
        Direction.FWD_BWD: ("out", "dq", "dk", "dv"),
    }[direction]
    return [results[name] for name in names]
