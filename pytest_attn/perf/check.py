"""Is the call that is timed right? Asked before the timing, and again after it with other values."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from attn_impls.implementation import Implementation
from attn_impls.problem import Direction, Problem
from pytest_attn.correctness.judge import poison
from pytest_attn.correctness.running import WrongOutput, run
from pytest_attn.correctness.slices import SliceStandard, slice_standard
from pytest_attn.correctness.standard import Standard, cut, cut_result, standard
from pytest_attn.perf.inputs import Inputs
from pytest_attn.perf.memory import nbytes
from pytest_attn.perf.settings import Settings

# Above this many scores a head the oracle would take longer than the measurement: slices are judged instead.
_MOST_WHOLE = 4096 * 4096
# What is worked out for one implementation serves the others where it takes no memory to speak of.
_MOST_KEPT_BYTES = 2**28


class WrongResult(AssertionError):
    """The result of the call that is timed is outside the error budget."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What two calls before the timing told.

    ``compile_s`` is the first call less the second, ``error_ratio`` the worst error over its budget (``None`` for an
    empty batch), ``output_bytes`` the bytes of what the caller gets.
    """

    compile_s: float
    error_ratio: float | None
    output_bytes: int


def check(
    impl: Implementation, problem: Problem, inputs: Inputs, direction: Direction, device: torch.device
) -> Checked:
    """Call ``impl`` twice and judge the second result on the last batch and key head, of a long one its last rows.

    The last, because that is where an offset that overflowed or a batch or tile that was left out shows.

    Raises:
        WrongResult: a value is not finite or outside the budget.
        WrongOutput: the result cannot be compared, or an input or one of torch's settings was changed.
        NotDifferentiable: a gradient is wanted and the output has none.
    """
    with left_alone(inputs):
        first_s, results = _timed_run(impl, problem, inputs, direction, device)
        del results
        with contextlib.suppress(torch.OutOfMemoryError):  # what has no room for poison has no stale memory either
            poison(inputs.tensors)
        second_s, results = _timed_run(impl, problem, inputs, direction, device)
        ratio = _judged(results, problem, inputs)
        return Checked(max(0.0, first_s - second_s), ratio, nbytes(_outputs(results, direction)))


def check_again(
    impl: Implementation,
    problem: Problem,
    inputs: Inputs,
    direction: Direction,
    device: torch.device,
    results: Mapping[str, torch.Tensor] | None,
) -> None:
    """Judge another part of the results of a call after the timing, on ``inputs`` that were renewed.

    A call that hands out an earlier result, or does less once it has been checked, fails here. ``results`` are those of
    a call that was made anyway; without them one is made.

    Raises as :func:`check`; the sentence of :class:`WrongResult` says that it was after the timing.
    """
    if results is None:
        _, results = _timed_run(impl, problem, inputs, direction, device)
    _judged(results, problem, inputs, random.Random(problem.id), " after the timing, on other inputs")


@contextlib.contextmanager
def left_alone(inputs: Inputs) -> Iterator[None]:
    """Raise :class:`WrongOutput` for a change of the inputs or of torch's settings; settings are put back anyhow.

    It takes the place of a :class:`WrongResult`, for it is what explains that one. What was worked out to judge by is
    forgotten then: it may come from changed values, or from another arithmetic.
    """
    settings, wrong = Settings(), None
    try:
        yield
    except WrongResult as error:
        wrong = error
    except BaseException:
        inputs.standards.clear()
        raise
    finally:
        change = settings.put_back()
    name = inputs.changed()
    if name is not None or change is not None:
        inputs.standards.clear()
    if name is not None:
        raise WrongOutput(f"it changed its input {name}") from wrong
    if change is not None:
        raise WrongOutput(f"it changed torch's {change}") from wrong
    if wrong is not None:
        raise wrong


def _timed_run(
    impl: Implementation, problem: Problem, inputs: Inputs, direction: Direction, device: torch.device
) -> tuple[float, dict[str, torch.Tensor]]:
    _synchronize(device)  # what was queued before, the poison for one, is not the call's
    begin = time.perf_counter()
    results = run(impl, problem, inputs.tensors, direction)
    _synchronize(device)
    return time.perf_counter() - begin, results


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _judged(
    results: Mapping[str, torch.Tensor],
    problem: Problem,
    inputs: Inputs,
    pick: random.Random | None = None,
    when: str = "",
) -> float | None:
    """Return the worst error over its budget on one batch and key head; ``None`` for an empty batch.

    Without ``pick``, which draws another, on the last ones; of a long problem, on slices of them.
    """
    if (name := _not_finite(results)) is not None:
        raise WrongResult(f"wrong result{when}: {name} is not finite")
    if problem.batch == 0:
        return None
    part = (problem.batch - 1, problem.kv_heads - 1)
    if pick is not None:
        part = (pick.randrange(problem.batch), pick.randrange(problem.kv_heads))
    gradients = "dq" in results
    key = (part, gradients, pick is not None)
    found = inputs.standards.get(key) or _standard(problem, inputs, part, gradients, pick)
    if found.nbytes <= _MOST_KEPT_BYTES:
        inputs.standards[key] = found
    verdicts = found.judge({name: cut_result(problem, t, *part) for name, t in results.items()})
    ratio = max(verdict.worst for verdict in verdicts)
    if not ratio <= 1:
        raise WrongResult(f"wrong result{when}: the error is {ratio:.3g} times its budget")
    return ratio


def _not_finite(results: Mapping[str, torch.Tensor]) -> str | None:
    """Return the name of the first tensor with an infinity or NaN, or ``None``.

    By the largest magnitude of each, which takes one pass and no memory, keeps NaN and cannot overflow. A sum in a
    wider dtype would copy the tensor to that dtype first.
    """
    largest = {name: torch.linalg.vector_norm(t, ord=math.inf) for name, t in results.items() if t.numel()}
    if not largest:
        return None
    finite = torch.stack(list(largest.values())).isfinite().tolist()
    return next((name for name, is_finite in zip(largest, finite, strict=True) if not is_finite), None)


def _standard(
    problem: Problem, inputs: Inputs, part: tuple[int, int], gradients: bool, pick: random.Random | None
) -> Standard | SliceStandard:
    smaller, tensors = cut(problem, inputs.tensors, *part)
    if problem.q_len * problem.kv_len <= _MOST_WHOLE:
        return standard(smaller, tensors, gradients=gradients)
    return slice_standard(smaller, tensors, gradients=gradients, pick=pick)


def _outputs(results: Mapping[str, torch.Tensor], direction: Direction) -> list[torch.Tensor]:
    """Return the tensors a caller gets: ``out`` forward, the gradients backward, all of them for both."""
    names = {
        Direction.FWD: ("out",),
        Direction.BWD: ("dq", "dk", "dv"),
        Direction.FWD_BWD: ("out", "dq", "dk", "dv"),
    }[direction]
    return [results[name] for name in names]
