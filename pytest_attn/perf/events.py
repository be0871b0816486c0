"""CUDA events: device seconds, with a cold L2 and launches that are proved to be hidden."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from statistics import median

import torch

from pytest_attn.perf.kineto import SPIN_KERNEL, Flush, Kernel, profile_kernels
from pytest_attn.perf.timers import Call, HostBound, Prepare

# Event times come in steps of this.
_RESOLUTION_S = 32e-9
_POLL_S = 50e-6
# Beyond this it is not the spin that is too short.
_LONGEST_SPIN_S = 0.25


class EventTimer:
    """Device seconds between two CUDA events around a call.

    Rounds are queued in batches behind a spinning kernel. A batch counts only if that kernel is still running when its
    last round has been queued: then no round waited for the host.

    The pair itself costs time: about 3 µs around a single kernel on an H100, a third of a short kernel. That fixed cost
    is calibrated once, against the duration that CUPTI reports for the same kernels, and taken off.

    Attributes:
        overhead_s: what is taken off.
        overhead_from: what it was calibrated against: ``"cupti"``; ``"nothing"`` where no profiler could look, so that
            what remains of it is in every time; ``None`` where it was given.
    """

    def __init__(
        self,
        device: torch.device,
        while_busy: Callable[[], object] = lambda: None,
        overhead_s: float | None = None,
    ) -> None:
        """Calibrate.

        Args:
            device: a CUDA device.
            while_busy: called while the device works through a batch and the host would wait.
            overhead_s: fixed cost of a pair of events, where an earlier process of this machine has calibrated it.
        """
        self.device = device
        self.flush = Flush(device)
        self.while_busy = while_busy
        self.cycles_per_second = self._spin_rate()
        self.overhead_from: str | None = None
        self.overhead_s = self._overhead() if overhead_s is None else overhead_s

    def source(self, prepare: Prepare) -> EventSource:
        """Return a source of rounds of ``prepare()()``."""
        return EventSource(self, prepare)

    def spin(self, seconds: float) -> None:
        """Keep the device busy."""
        torch.cuda._sleep(int(seconds * self.cycles_per_second))

    def _spin_rate(self) -> float:
        """Return the cycles per second of the spinning kernel's clock."""
        cycles = 10_000_000
        start, end = event(), event()
        torch.cuda._sleep(cycles)
        start.record()
        torch.cuda._sleep(cycles)
        end.record()
        end.synchronize()
        seconds: float = start.elapsed_time(end) * 1e-3
        return cycles / seconds

    def _overhead(self) -> float:
        """Return seconds that a pair of events around one kernel reads beyond the kernel's own duration.

        Spinning kernels of several lengths, in turns, since a single batch is off by a few tenths of a microsecond.
        Where no profiler can look (another one is attached), it is what a pair around nothing reads.
        """
        self.overhead_s = 0.0
        differences = []
        for micros in (5, 10, 20, 40) * 4:
            spin = functools.partial(torch.cuda._sleep, int(micros * 1e-6 * self.cycles_per_second))
            by_events = EventSource(self, _always(spin)).batch(16)
            by_cupti = [kernel.duration_s for kernel in self._spins(spin, 16)]
            if not by_cupti:
                self.overhead_from = "nothing"
                return median(EventSource(self, _always(_nothing)).batch(16))
            differences.append(median(by_events) - median(by_cupti))
        self.overhead_from = "cupti"
        return max(0.0, median(differences))

    def _spins(self, spin: Call, count: int) -> list[Kernel]:
        def run() -> None:
            for _ in range(count):
                self.flush()
                spin()

        return [kernel for kernel in profile_kernels(run) if SPIN_KERNEL in kernel.name]


class EventSource:
    """Rounds of one implementation between CUDA events."""

    # Sizes to fall back to: the driver's queue holds about a thousand launches and then blocks the host.
    _SIZES = (16, 16, 4, 1)

    def __init__(self, timer: EventTimer, prepare: Prepare) -> None:
        self._timer = timer
        self._prepare = prepare
        self._level = 0
        self._queue_s = 1e-3  # the host's seconds to queue one round, the preparation included
        self._launches: list[float] = []

    def batch(self, size: int) -> list[float]:
        """Return seconds for at most ``size`` rounds.

        Raises :class:`HostBound`, with both times of a round, when the device keeps waiting for the host.
        """
        for level in range(self._level, len(self._SIZES)):
            count = min(self._SIZES[level], size)
            raw = self._queued(count, spin_s=min(2 * self._queue_s * count, _LONGEST_SPIN_S) + 1e-3)
            if raw:
                # A queue that was too small stays so; a host that was once busy elsewhere does not.
                self._level = level if level > 1 else 0
                return [max(seconds - self._timer.overhead_s, _RESOLUTION_S) for seconds in raw]
        host_s, device_s = self._unhidden()
        raise HostBound(
            f"the device waits for the host: a round takes {1e6 * host_s:.0f} µs to launch, "
            f"{1e6 * device_s:.0f} µs from first to last event"
        )

    def host_seconds(self) -> float | None:
        """Return the median of the host's seconds to launch one call."""
        return median(self._launches) if self._launches else None

    def _queued(self, size: int, spin_s: float) -> list[float]:
        """Return raw seconds for ``size`` rounds, or nothing when the device caught up with the host."""
        pairs = [(event(), event()) for _ in range(size)]
        gate = event()
        torch.cuda.synchronize(self._timer.device)
        self._timer.spin(spin_s)
        gate.record()
        begin = time.perf_counter()
        for start, end in pairs:
            self._round(start, end)
        self._queue_s = (time.perf_counter() - begin) / size
        hidden = not gate.query()
        if hidden:
            self._watch(pairs[size // 2][0])
        torch.cuda.synchronize(self._timer.device)
        return [start.elapsed_time(end) * 1e-3 for start, end in pairs] if hidden else []

    def _watch(self, middle: torch.cuda.Event) -> None:
        """Look at the device when it is half through the batch, not while it spins."""
        while not middle.query():
            time.sleep(_POLL_S)
        self._timer.while_busy()

    def _unhidden(self) -> tuple[float, float]:
        """Return the host's and the device's seconds of one round before which nothing hides the launches."""
        start, end = event(), event()
        torch.cuda.synchronize(self._timer.device)
        self._round(start, end)
        end.synchronize()
        return self._launches[-1], start.elapsed_time(end) * 1e-3

    def _round(self, start: torch.cuda.Event, end: torch.cuda.Event) -> None:
        call: Call = self._prepare()
        self._timer.flush()
        start.record()
        begin = time.perf_counter()
        call()
        self._launches.append(time.perf_counter() - begin)
        end.record()


def _always(call: Call) -> Prepare:
    return lambda: call


def _nothing() -> None:
    return None


def event() -> torch.cuda.Event:
    """Return a CUDA event that keeps its time."""
    return torch.cuda.Event(enable_timing=True)
