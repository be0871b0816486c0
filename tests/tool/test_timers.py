"""Timers under a fake clock and on a fake CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from pytest_attn.perf import timers
from pytest_attn.perf.contract import Contract
from pytest_attn.perf.timers import EventTimer, HostBound, WallTimer, timer_for

WALL = Contract("wall", 1, warmup_s=0.5, min_rounds=5, max_rounds=20, budget_s=1.0)
EVENTS = Contract("events", 1, warmup_s=0.01, min_rounds=10, max_rounds=40, budget_s=0.0255)


class Host:
    """A clock that stands still unless someone works."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[float] = []

    def work(self, seconds: float) -> Callable[[], object]:
        def call() -> None:
            self.calls.append(self.now)
            self.now += seconds

        return call


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    clock = Host()
    monkeypatch.setattr(timers, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


@pytest.mark.parametrize(
    ("seconds", "rounds", "warmups"),
    [
        (10.0, 5, 2),  # slow: the fewest rounds, two calls to warm up
        (0.1, 10, 5),  # the budget of one second
        (0.001, 20, 20),  # quick: the most rounds, however little was spent
    ],
)
def test_wall_rounds(host: Host, seconds: float, rounds: int, warmups: int) -> None:
    durations = WallTimer().rounds(lambda: host.work(seconds), WALL)
    assert len(durations) in (rounds, rounds + 1)  # a sum of tenths may fall short of one
    assert durations == pytest.approx([seconds] * len(durations))
    assert len(host.calls) - len(durations) in (warmups, warmups + 1)


def test_wall_leaves_out_the_preparation(host: Host) -> None:
    def prepare() -> Callable[[], object]:
        host.now += 7.0
        return host.work(0.25)

    durations = WallTimer().rounds(prepare, WALL)
    assert durations == pytest.approx([0.25] * 5, rel=1e-9)


class Cuda:
    """A device with a queue: what the host submits starts when the device is free, not before it is submitted."""

    cycles_per_second = 1e9

    def __init__(self, host: Host) -> None:
        self.host = host
        self.free_at = 0.0
        self.rounds = 0

    def submit(self, seconds: float) -> None:
        self.free_at = max(self.free_at, self.host.now) + seconds

    def synchronize(self, device: object = None) -> None:
        self.host.now = max(self.host.now, self.free_at)

    def event(self, enable_timing: bool = False) -> Event:
        assert enable_timing
        return Event(self)

    def kernel(self, device_s: float, launch_s: float) -> Callable[[], object]:
        def call() -> None:
            self.rounds += 1
            self.host.now += launch_s
            self.submit(device_s)

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


@pytest.fixture
def cuda(host: Host, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda(host)
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(
        torch.cuda, "_sleep", lambda cycles: fake.submit(cycles / fake.cycles_per_second), raising=False
    )
    monkeypatch.setattr(torch.cuda, "synchronize", fake.synchronize)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=4096))
    return fake


def event_timer() -> EventTimer:
    return EventTimer(torch.device("cpu"))  # where the fake device's memory is


def test_events_give_device_seconds(cuda: Cuda) -> None:
    durations = event_timer().rounds(lambda: cuda.kernel(device_s=1e-3, launch_s=1e-6), EVENTS)
    assert len(durations) == 25  # the budget over the device's time
    assert durations == pytest.approx([1e-3] * 25)


@pytest.mark.parametrize(("device_s", "rounds"), [(1.0, 10), (1e-5, 40)])
def test_events_keep_within_the_contract(cuda: Cuda, device_s: float, rounds: int) -> None:
    durations = event_timer().rounds(lambda: cuda.kernel(device_s, launch_s=1e-6), EVENTS)
    assert durations == pytest.approx([device_s] * rounds)


def test_events_hide_launches_that_are_slower_than_the_device(cuda: Cuda) -> None:
    durations = event_timer().rounds(lambda: cuda.kernel(device_s=1e-5, launch_s=1e-3), EVENTS)
    assert durations == pytest.approx([1e-5] * len(durations))
    assert EVENTS.min_rounds <= len(durations) <= EVENTS.max_rounds


def test_events_leave_the_preparation_out(cuda: Cuda) -> None:
    def prepare() -> Callable[[], object]:
        cuda.submit(5e-3)  # the forward pass before a backward one
        return cuda.kernel(device_s=1e-3, launch_s=1e-5)

    assert event_timer().rounds(prepare, EVENTS) == pytest.approx([1e-3] * 25)


def test_a_batch_in_which_the_host_was_late_is_thrown_away(cuda: Cuda) -> None:
    warm = 12  # calls before the first batch, about
    late = []

    def prepare() -> Callable[[], object]:
        kernel = cuda.kernel(device_s=1e-3, launch_s=1e-5)

        def call() -> None:
            if cuda.rounds > warm + 5 and not late:
                late.append(cuda.rounds)
                cuda.host.now += 3.0  # the host was busy elsewhere between the round's two events
            kernel()

        return call

    durations = event_timer().rounds(prepare, EVENTS)
    assert late
    assert durations == pytest.approx([1e-3] * 25)


def test_a_host_that_is_always_late_is_said(cuda: Cuda) -> None:
    def prepare() -> Callable[[], object]:
        kernel = cuda.kernel(device_s=40e-6, launch_s=260e-6)

        def call() -> None:
            kernel()
            cuda.synchronize()  # as an implementation with .item() in it

        return call

    with pytest.raises(HostBound) as raised:
        event_timer().rounds(prepare, EVENTS)
    assert str(raised.value) == (
        "the device waits for the host: a round takes 300 µs to launch, 300 µs from first to last event"
    )


def test_the_cache_is_flushed_before_each_round_and_outside_of_it(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = event_timer()
    flushed = []

    class Flush:
        def zero_(self) -> None:
            flushed.append(cuda.rounds)
            cuda.submit(2e-3)

    assert timer._flush.nbytes == 2 * 4096
    monkeypatch.setattr(timer, "_flush", Flush())
    durations = timer.rounds(lambda: cuda.kernel(device_s=1e-3, launch_s=1e-5), EVENTS)
    assert durations == pytest.approx([1e-3] * 25)
    assert len(flushed) == 25 + 1  # and once for the estimate


def test_timer_for() -> None:
    assert isinstance(timer_for(WALL, torch.device("cpu")), WallTimer)


def test_timer_for_events(cuda: Cuda) -> None:
    assert isinstance(timer_for(EVENTS, torch.device("cpu")), EventTimer)
