"""Measure one implementation on one problem in one direction: :func:`measure`."""

from __future__ import annotations

import contextlib
import gc
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from attn_impls.implementation import Implementation, Unavailable
from attn_impls.problem import Direction, Problem
from pytest_attn.correctness.case import Case, Tensors, make_tensors
from pytest_attn.correctness.judge import NotDifferentiable, WrongOutput, judge_results, poison, run
from pytest_attn.perf.contract import Contract
from pytest_attn.perf.device import lost_device
from pytest_attn.perf.memory import SavedBytes, nbytes, peak_bytes
from pytest_attn.perf.record import Memory, Record, Time
from pytest_attn.perf.timers import Call, HostBound, timer_for

# Above this many scores a head the oracle would take longer than the measurement.
_MOST_CHECKED = 4096 * 4096


@dataclass(frozen=True, slots=True)
class Measured:
    """A record and the seconds of each of its rounds (none unless the record is ``ok``)."""

    record: Record
    durations: tuple[float, ...] = ()


def measure(
    impl: Implementation, problem: Problem, direction: Direction, device: torch.device, contract: Contract
) -> Record:
    """Return the record of :func:`measure_rounds` alone."""
    return measure_rounds(impl, problem, direction, device, contract).record


def measure_rounds(
    impl: Implementation, problem: Problem, direction: Direction, device: torch.device, contract: Contract
) -> Measured:
    """Check ``impl`` on ``problem``, time it, then take its memory.

    A problem outside the capabilities is ``unsupported``, too little memory is ``oom``, a device that kept waiting for
    the host is ``host_bound``, and a wrong result or anything raised is ``error``; each with its reason.

    Raises:
        Unavailable: the implementation cannot run on this machine at all.
    """
    record = Record(impl.name, problem, direction, "error", contract.id, impl_version=impl.version_or_unknown())
    reason = impl.capabilities.why_not(problem, direction, device.type)
    if reason is not None:
        return Measured(replace(record, status="unsupported", reason=reason))
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        # Events and spinning kernels go to the current device's stream.
        measured = _attempt(impl, problem, direction, device, contract, record)
    if measured.record.status != "ok":
        # A traceback kept the tensors of its frames in a cycle.
        gc.collect()
    if device.type == "cuda" and lost_device(device) is None:
        torch.cuda.empty_cache()
    return measured


def _attempt(
    impl: Implementation,
    problem: Problem,
    direction: Direction,
    device: torch.device,
    contract: Contract,
    record: Record,
) -> Measured:
    try:
        with warnings.catch_warnings():
            # Not an error where the user turns warnings into errors for tests of their own.
            warnings.simplefilter("ignore")
            return _measure(impl, problem, direction, device, contract, record)
    except Unavailable:
        raise
    except HostBound as error:
        return Measured(replace(record, status="host_bound", reason=str(error)))
    except Exception as error:
        if is_out_of_memory(error):
            return Measured(replace(record, status="oom", reason=_asked_for(error)))
        sentence = str(error).strip().partition("\n")[0] or "without a message"
        if not isinstance(error, WrongOutput | NotDifferentiable | WrongResult):
            sentence = f"{type(error).__name__}: {sentence}"
        return Measured(replace(record, reason=sentence))


def _measure(
    impl: Implementation,
    problem: Problem,
    direction: Direction,
    device: torch.device,
    contract: Contract,
    record: Record,
) -> Measured:
    tensors = make_tensors(Case(problem), device, draw_on=device)
    kept = tensors.clone()
    first_s, _ = _timed_run(impl, problem, tensors, direction, device)
    poison(tensors)
    second_s, results = _timed_run(impl, problem, tensors, direction, device)
    if (name := tensors.changed_since(kept)) is not None:
        raise WrongOutput(f"it changed its input {name}")
    del kept
    for name, tensor in results.items():
        if not bool(tensor.isfinite().all()):
            raise WrongResult(f"wrong result: {name} is not finite")
    ratio = _error_ratio(results, problem, tensors)
    if ratio is not None and not ratio <= 1:
        raise WrongResult(f"wrong result: the error is {ratio:.3g} times its budget")
    outputs = nbytes(_outputs(results, direction))
    del results
    durations = timer_for(contract, device).rounds(_round(impl, problem, tensors, direction), contract)
    timing = _summary(durations)
    memory = _memory(impl, problem, tensors, direction, device, outputs)
    record = replace(
        record,
        status="ok",
        time_s=timing,
        memory=memory,
        compile_s=max(0.0, first_s - second_s),
        accuracy=None if ratio is None else {"error_ratio": ratio},
    )
    return Measured(record, tuple(durations))


def _timed_run(
    impl: Implementation, problem: Problem, tensors: Tensors, direction: Direction, device: torch.device
) -> tuple[float, dict[str, torch.Tensor]]:
    begin = time.perf_counter()
    results = run(impl, problem, tensors, direction)
    _synchronize(device)
    return time.perf_counter() - begin, results


class WrongResult(AssertionError):
    """The result of the call that would be timed is outside the error budget."""


def _error_ratio(results: dict[str, torch.Tensor], problem: Problem, tensors: Tensors) -> float | None:
    """Return the worst error over its budget on the last batch and group of heads; ``None`` for what is too large.

    The last, because that is where an offset that overflowed or a batch that was left out shows.
    """
    if problem.batch == 0 or problem.q_len * problem.kv_len > _MOST_CHECKED:
        return None
    group = problem.heads // problem.kv_heads
    part = replace(problem, batch=1, heads=group, kv_heads=1, scale=problem.softmax_scale)

    def last(tensor: torch.Tensor, heads: int) -> torch.Tensor:
        return tensor[-1:, -heads:].detach()

    cut = Tensors(last(tensors.q, group), last(tensors.k, 1), last(tensors.v, 1), last(tensors.dout, group))
    parts = {name: last(tensor, 1 if name in ("dk", "dv") else group) for name, tensor in results.items()}
    return max(max(verdict.ratio, verdict.rms_ratio) for verdict in judge_results(parts, part, cut))


def _round(impl: Implementation, problem: Problem, tensors: Tensors, direction: Direction) -> Callable[[], Call]:
    """Return what prepares one round: a call on fresh leaves, with a fresh graph where backward is timed."""

    def forward() -> Call:
        def call() -> object:
            with torch.no_grad():
                return impl(tensors.q, tensors.k, tensors.v, problem)

        return call

    def backward() -> Call:
        leaves = tensors.requires_grad()
        out = impl(leaves.q, leaves.k, leaves.v, problem)
        return lambda: torch.autograd.grad(out, (leaves.q, leaves.k, leaves.v), tensors.dout)

    def both() -> Call:
        leaves = tensors.requires_grad()

        def call() -> object:
            out = impl(leaves.q, leaves.k, leaves.v, problem)
            return torch.autograd.grad(out, (leaves.q, leaves.k, leaves.v), tensors.dout)

        return call

    return {Direction.FWD: forward, Direction.BWD: backward, Direction.FWD_BWD: both}[direction]


def _memory(
    impl: Implementation,
    problem: Problem,
    tensors: Tensors,
    direction: Direction,
    device: torch.device,
    outputs: int,
) -> Memory:
    if direction is Direction.FWD:
        peak = peak_bytes(lambda: None, _round(impl, problem, tensors, direction)(), device)
        return Memory(peak, max(0, peak - outputs))
    leaves = tensors.requires_grad()
    saved = SavedBytes((leaves.q, leaves.k, leaves.v))
    state: dict[str, Any] = {}

    def forward() -> None:
        with saved:
            state["out"] = impl(leaves.q, leaves.k, leaves.v, problem)

    def backward() -> object:
        out = state.pop("out")
        return torch.autograd.grad(out, (leaves.q, leaves.k, leaves.v), tensors.dout)

    def both() -> object:
        forward()
        return backward()

    peak = peak_bytes(forward, backward, device) if direction is Direction.BWD else peak_bytes(_nothing, both, device)
    return Memory(peak, max(0, peak - outputs), saved.total)


def _nothing() -> None:
    return None


def _outputs(results: dict[str, torch.Tensor], direction: Direction) -> list[torch.Tensor]:
    """Return the tensors a caller gets: ``out`` forward, the gradients backward, all of them for both."""
    names = {
        Direction.FWD: ("out",),
        Direction.BWD: ("dq", "dk", "dv"),
        Direction.FWD_BWD: ("out", "dq", "dk", "dv"),
    }[direction]
    return [results[name] for name in names]


def _summary(durations: list[float]) -> Time:
    tensor = torch.tensor(durations, dtype=torch.float64)
    p10, median, p90 = torch.quantile(tensor, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    return Time(median, p10, p90, len(durations))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether ``error`` is torch's out-of-memory error, of a CUDA device or of the CPU's allocator."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _asked_for(error: BaseException) -> str:
    """Return "out of memory", with the size that was asked for where the message tells it."""
    text = str(error)
    found = re.search(r"allocate ([\d.]+ ?[KMGT]?i?B)", text) or re.search(r"allocate (\d+ bytes)", text)
    return f"out of memory: asked for {found.group(1)}" if found else "out of memory"
