"""Timers: seconds of one call, many times, under a contract."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

from pytest_attn.perf.contract import Contract

Call = Callable[[], object]
# What comes before a timed call and outside of it: it returns the call to time.
Prepare = Callable[[], Call]


class HostBound(RuntimeError):
    """The device waited for the host in every attempt, so that the event times would include launches."""


class Timer(Protocol):
    """Times ``prepare()()``, the preparation left out."""

    def rounds(self, prepare: Prepare, contract: Contract) -> list[float]:
        """Return seconds for each round, as many as the contract asks for."""


class WallTimer:
    """Host seconds by ``time.perf_counter``: for a CPU, where a call returns when it is done."""

    def rounds(self, prepare: Prepare, contract: Contract) -> list[float]:
        """Warm up, then time until the budget is spent."""
        warm_until = time.perf_counter() + contract.warmup_s
        count = 0
        while count < 2 or (count < contract.max_rounds and time.perf_counter() < warm_until):
            prepare()()
            count += 1
        durations: list[float] = []
        spent = 0.0
        while len(durations) < contract.min_rounds or (
            spent < contract.budget_s and len(durations) < contract.max_rounds
        ):
            call = prepare()
            start = time.perf_counter()
            call()
            durations.append(time.perf_counter() - start)
            spent += durations[-1]
        return durations


class EventTimer:
    """Device seconds between two CUDA events, with a cold L2 and the launches hidden behind a busy device.

    Rounds are queued in batches behind a spinning kernel. A batch counts only if that kernel is still running when its
    last round has been queued: then no round waited for the host. Otherwise the batch is thrown away and a smaller one
    is queued behind a longer spin, since the driver's queue holds about a thousand launches and then blocks the host.
    """

    _BATCHES = (16, 16, 4, 1)

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Twice the L2, so that nothing of the inputs is left in it.
        l2_bytes = int(torch.cuda.get_device_properties(device).L2_cache_size)
        self._flush = torch.empty(2 * l2_bytes // 4, dtype=torch.int32, device=device)
        self._cycles_per_second = self._spin_rate()

    def rounds(self, prepare: Prepare, contract: Contract) -> list[float]:
        """Warm up, then queue batches until the budget is spent.

        Raises :class:`HostBound`, with both times of a round, when the device keeps waiting for the host.
        """
        device_s, host_s = self._warm_up(prepare, contract)
        wanted = int(min(contract.max_rounds, max(contract.min_rounds, contract.budget_s / max(device_s, 1e-6))))
        durations: list[float] = []
        attempt = 0
        while len(durations) < wanted:
            size = min(self._BATCHES[attempt], wanted - len(durations))
            batch = self._batch(prepare, size, spin_s=2**attempt * (2 * host_s * size + 1e-3))
            durations += batch
            attempt += not batch
            if attempt == len(self._BATCHES):
                raise HostBound(
                    f"the device waits for the host: a round takes {1e6 * host_s:.0f} µs to launch, "
                    f"{1e6 * device_s:.0f} µs from first to last event"
                )
        return durations

    def _warm_up(self, prepare: Prepare, contract: Contract) -> tuple[float, float]:
        """Return estimates of the device's and the host's seconds for one round."""
        torch.cuda.synchronize(self._device)
        begin = time.perf_counter()
        count = 0
        while count < 2 or time.perf_counter() - begin < contract.warmup_s:
            prepare()()
            torch.cuda.synchronize(self._device)
            count += 1
        start, end = self._event(), self._event()
        queued = time.perf_counter()
        self._round(prepare, start, end)
        host = time.perf_counter() - queued
        end.synchronize()
        return start.elapsed_time(end) * 1e-3, host

    def _batch(self, prepare: Prepare, size: int, spin_s: float) -> list[float]:
        """Return seconds for ``size`` rounds, or nothing when the device caught up with the host."""
        pairs = [(self._event(), self._event()) for _ in range(size)]
        gate = self._event()
        torch.cuda._sleep(int(spin_s * self._cycles_per_second))
        gate.record()
        for start, end in pairs:
            self._round(prepare, start, end)
        hidden = not gate.query()
        torch.cuda.synchronize(self._device)
        return [start.elapsed_time(end) * 1e-3 for start, end in pairs] if hidden else []

    def _round(self, prepare: Prepare, start: torch.cuda.Event, end: torch.cuda.Event) -> None:
        call = prepare()
        self._flush.zero_()
        start.record()
        call()
        end.record()

    def _event(self) -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True)

    def _spin_rate(self) -> float:
        """Return the cycles per second of the spinning kernel's clock."""
        cycles = 10_000_000
        start, end = self._event(), self._event()
        torch.cuda._sleep(cycles)
        start.record()
        torch.cuda._sleep(cycles)
        end.record()
        end.synchronize()
        seconds: float = start.elapsed_time(end) * 1e-3
        return cycles / seconds


def timer_for(contract: Contract, device: torch.device) -> Timer:
    """Return the timer that the contract names, for ``device``."""
    return EventTimer(device) if contract.timer == "events" else WallTimer()
