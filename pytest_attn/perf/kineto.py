"""Kernels as CUPTI saw them, through torch.profiler: names and durations. A second timer, and proof of what ran."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pytest_attn.perf.profiler import profiling
from pytest_attn.perf.timers import Prepare

# The kernel of torch.cuda._sleep, which stands before and after each traced call.
SPIN_KERNEL = "spin_kernel"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel, copy or fill: its demangled name, when it started, from the first one on, its seconds, its stream."""

    name: str
    start_s: float
    duration_s: float
    stream: int = 0


@dataclass(frozen=True, slots=True)
class Trace:
    """The kernels of one call, in the order in which they started."""

    kernels: tuple[Kernel, ...]

    @property
    def kernel_s(self) -> float:
        """Sum of the durations: gaps are left out, and what ran at the same time counts twice."""
        return sum(kernel.duration_s for kernel in self.kernels)

    @property
    def busy_s(self) -> float:
        """How long any of them ran: gaps are left out, and what ran at the same time counts once."""
        busy, until = 0.0, -math.inf
        for kernel in self.kernels:
            end = kernel.start_s + kernel.duration_s
            busy += max(0.0, end - max(kernel.start_s, until))
            until = max(until, end)
        return busy

    @property
    def stream_s(self) -> float:
        """How long the kernels of the busiest stream ran, one after the other: gaps are left out."""
        by_stream: dict[int, float] = {}
        for kernel in self.kernels:
            by_stream[kernel.stream] = by_stream.get(kernel.stream, 0.0) + kernel.duration_s
        return max(by_stream.values(), default=0.0)


class Flush:
    """Fills twice the device's L2, so that nothing of the inputs is left in it."""

    def __init__(self, device: torch.device) -> None:
        l2_bytes = int(torch.cuda.get_device_properties(device).L2_cache_size)
        self._buffer = torch.empty(2 * l2_bytes // 4, dtype=torch.int32, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes that are written."""
        return self._buffer.nbytes

    def __call__(self) -> None:
        """Queue the fill."""
        self._buffer.zero_()


class LostTrack(RuntimeError):
    """The profiler did not report every mark, so that what it did report cannot be told apart."""


class StrayWork(AssertionError):
    """Kernels of a call ran outside of it: on a stream that the caller's does not wait for."""


@dataclass(frozen=True, slots=True)
class Round:
    """A call to be traced; ``prepares_on_device`` says that ``prepare``, which gives it, itself runs kernels."""

    prepare: Prepare
    prepares_on_device: bool = False


def trace(
    rounds: Sequence[Round],
    flush: Flush,
    *,
    while_busy: Callable[[], object] = lambda: None,
    warm_s: float = 0.0,
) -> list[Trace]:
    """Return what the device ran for the call of each round, the preparation left out.

    Empty where the profiler reports nothing at all, as when another profiler is attached.

    Args:
        rounds: what is called, in this order. Where the preparation runs no kernels, every kernel must lie inside.
        flush: queued before each call.
        while_busy: called when all is queued.
        warm_s: seconds of calls of the last round without the profiler, ahead of the others: after the host's work that
            the device idled through its clock is not the one of the timed rounds.

    Raises:
        LostTrack: some marks or flushes are missing, or the call itself runs the kernel that marks.
        StrayWork: a kernel ran outside of the call that queued it.
    """
    begin = time.perf_counter()
    while time.perf_counter() - begin < warm_s:
        call = rounds[-1].prepare()
        flush()
        call()
        # Not ahead of the device: calls of a second each would queue up.
        torch.cuda.synchronize()

    def run() -> None:
        for each in rounds:
            call = each.prepare()
            flush()
            torch.cuda._sleep(0)
            call()
            torch.cuda._sleep(0)
        while_busy()

    kernels = profile_kernels(run)
    return split(kernels, [each.prepares_on_device for each in rounds]) if kernels else []


def profile_kernels(run: Callable[[], object]) -> list[Kernel]:
    """Return the kernels that ``run()`` queued, in the order in which they started."""
    # acc_events: without it the profiler warns on every use that it forgets events between cycles; there are none.
    with profiling("CUDA", acc_events=True) as profiler:
        run()
        torch.cuda.synchronize()
    events = [event for event in profiler.profiler.kineto_results.events() if event.device_type().name == "CUDA"]
    events.sort(key=lambda event: event.start_ns())
    # Nanoseconds since 1970: as float seconds they would come in steps of a quarter of a microsecond.
    return [
        Kernel(
            event.name(),
            (event.start_ns() - events[0].start_ns()) * 1e-9,
            event.duration_ns() * 1e-9,
            event.device_resource_id(),
        )
        for event in events
    ]


def split(kernels: Sequence[Kernel], prepares_on_device: Sequence[bool]) -> list[Trace]:
    """Return what ran between the first and the second mark, between the third and the fourth, and so on.

    ``prepares_on_device`` says of each call whether its preparation runs kernels; where it does not, the flush alone
    must lie between the call before and this one. Raises as :func:`trace`.
    """
    traces: list[Trace] = []
    inside: list[Kernel] | None = None
    before, marks, rounds = [0], 0, len(prepares_on_device)
    for kernel in kernels:
        if SPIN_KERNEL in kernel.name:
            marks += 1
            if inside is not None:
                if any(each.start_s + each.duration_s > kernel.start_s + kernel.duration_s for each in inside):
                    raise StrayWork("left work on another stream: a kernel outlasts the call")
                traces.append(Trace(tuple(inside)))
                before.append(0)
            inside = [] if inside is None else None
        elif inside is not None:
            inside.append(kernel)
        else:
            before[-1] += 1
    if marks != 2 * rounds:
        raise LostTrack(f"torch.profiler reported {marks} of the {2 * rounds} marks around {rounds} calls")
    flushes = [count for count, prepares in zip(before, prepares_on_device, strict=False) if not prepares]
    if 0 in flushes:
        found = len(flushes) - flushes.count(0)
        raise LostTrack(f"torch.profiler reported {found} of the {len(flushes)} flushes before {rounds} calls")
    if stray := sum(count - 1 for count in flushes) + before[-1]:
        raise StrayWork(f"left work on another stream: {stray} kernels ran outside of {rounds} calls")
    return traces


class KinetoTimer:
    """Summed durations of the kernels of a call."""

    def __init__(self, device: torch.device, while_busy: Callable[[], object] = lambda: None) -> None:
        self.flush = Flush(device)
        self.while_busy = while_busy

    def source(self, prepare: Prepare) -> KinetoSource:
        """Return a source of rounds of ``prepare()()``."""
        return KinetoSource(self, prepare)


class KinetoSource:
    """Rounds of one implementation, each the sum of its kernels' durations."""

    def __init__(self, timer: KinetoTimer, prepare: Prepare) -> None:
        self._timer = timer
        self._prepare = prepare

    def batch(self, size: int) -> list[float]:
        """Return seconds for ``size`` rounds.

        Raises ``RuntimeError`` where the profiler reports nothing, and :class:`LostTrack`.
        """
        timer = self._timer
        # No warm-up of its own: that of the contract is behind it, and the batches follow each other.
        rounds = [Round(self._prepare, prepares_on_device=True)] * size
        traces = trace(rounds, timer.flush, while_busy=timer.while_busy)
        seconds = [traced.kernel_s for traced in traces]
        if not all(seconds) or not seconds:
            raise RuntimeError("torch.profiler reports no kernels; is another profiler attached?")
        return seconds

    def host_seconds(self) -> None:
        """Return ``None``: under the profiler a launch costs more than it does outside."""
