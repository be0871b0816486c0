"""A clock that only moves when somebody works, and a CUDA device with a queue that lives by it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from pytest_attn.perf import events, rounds, wall
from pytest_attn.perf.events import EventTimer
from pytest_attn.perf.kineto import Kernel
from pytest_attn.perf.timers import Prepare


class Host:
    """A clock that stands still unless someone works or sleeps; ``busy`` threads burn processor time meanwhile."""

    def __init__(self) -> None:
        self.now = 100.0
        self.burnt = 0.0
        self.busy = 0.0

    def work(self, seconds: float) -> Callable[[], object]:
        def call() -> None:
            self.now += seconds
            self.burnt += seconds

        return call

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        spinning = min(self.busy, seconds)
        self.busy -= spinning
        self.burnt += spinning


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    clock = Host()
    fake = SimpleNamespace(perf_counter=lambda: clock.now, process_time=lambda: clock.burnt, sleep=clock.sleep)
    for module in (events, rounds, wall):
        monkeypatch.setattr(module, "time", fake)
    return clock


class Cuda:
    """A device with a queue: what the host submits starts when the device is free, not before it is submitted.

    Around a kernel a pair of events reads ``overhead`` more than the kernel takes, as on a real device. ``speed`` is
    that of the clock.
    """

    cycles_per_second = 1e9
    overhead = 3e-6

    def __init__(self, host: Host) -> None:
        self.host = host
        self.free_at = 0.0
        self.speed = 1.0
        self.launched: list[float] = []
        self.log: list[str] = []

    def submit(self, seconds: float) -> None:
        self.free_at = max(self.free_at, self.host.now) + seconds / self.speed

    def spin(self, cycles: int) -> None:
        self.launched.append(cycles / self.cycles_per_second)
        self.submit(self.launched[-1] + self.overhead * self.speed)

    def synchronize(self, device: object = None) -> None:
        self.host.now = max(self.host.now, self.free_at)

    def kernel(self, device_s: float, launch_s: float = 1e-6, name: str = "kernel") -> Callable[[], object]:
        def call() -> None:
            self.log.append(name)
            self.host.now += launch_s
            self.submit(device_s + self.overhead * self.speed)

        return call


class Event:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.at = float("nan")

    def record(self) -> None:
        self.cuda.submit(0.0)
        self.at = self.cuda.free_at

    def query(self) -> bool:
        return self.at <= self.cuda.host.now

    def synchronize(self) -> None:
        self.cuda.host.now = max(self.cuda.host.now, self.at)

    def elapsed_time(self, end: Event) -> float:
        return (end.at - self.at) * 1e3


class Flush:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.count = 0
        self.nbytes = 1

    def __call__(self) -> None:
        self.count += 1
        self.cuda.submit(40e-6)


@pytest.fixture
def cuda(host: Host, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda(host)

    def profiled(run: Callable[[], object]) -> list[Kernel]:
        fake.launched.clear()
        run()
        fake.synchronize()
        return [Kernel("spin_kernel(long)", at, seconds) for at, seconds in enumerate(fake.launched)]

    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(fake))
    monkeypatch.setattr(torch.cuda, "_sleep", fake.spin, raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", fake.synchronize)
    monkeypatch.setattr(events, "Flush", lambda device: Flush(fake))
    monkeypatch.setattr(events, "profile_kernels", profiled)
    return fake


def always(call: Callable[[], object]) -> Prepare:
    return lambda: call


def timer(while_busy: Callable[[], object] = lambda: None) -> EventTimer:
    return EventTimer(torch.device("cpu"), while_busy)
