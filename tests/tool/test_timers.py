"""Timers under a fake clock and on a fake CUDA device: launch gap, drift, a bimodal kernel, a throttled one."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator
from statistics import median
from types import SimpleNamespace

import pytest
import torch

from pytest_attn.perf import energy, events, rounds, wall
from pytest_attn.perf.contract import Contract
from pytest_attn.perf.events import EventTimer
from pytest_attn.perf.kineto import Kernel
from pytest_attn.perf.rounds import take_turns, warm_up
from pytest_attn.perf.spread import half_width
from pytest_attn.perf.timers import HostBound, Prepare
from pytest_attn.perf.wall import WallTimer

TERMS = Contract(
    "events",
    0,
    warmup_s=0.02,
    warmup_cap_s=0.3,
    flat=0.01,
    batch_s=0.02,
    min_rounds=10,
    max_rounds=100,
    least_s=0.0,
    budget_s=0.5,
    precision=0.005,
    noisy_above=0.1,
)


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


def timed(source: object, terms: Contract = TERMS) -> list[float]:
    (turns,) = take_turns([source], terms, random.Random(0))  # type: ignore[list-item]
    if turns.error is not None:
        raise turns.error
    return turns.durations


def test_events_give_the_kernels_time_without_the_cost_of_the_pair(cuda: Cuda) -> None:
    events_timer = timer()
    assert events_timer.overhead_s == pytest.approx(3e-6)
    assert events_timer.source(always(cuda.kernel(20e-6))).batch(16) == pytest.approx([20e-6] * 16)


def test_without_a_profiler_the_pair_around_nothing_is_taken_off(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "profile_kernels", lambda run: [])
    assert timer().overhead_s == pytest.approx(0.0, abs=1e-7)


def test_the_cache_is_flushed_before_each_round_and_outside_of_it(cuda: Cuda) -> None:
    events_timer = timer()
    before = events_timer.flush.count  # type: ignore[attr-defined]
    assert events_timer.source(always(cuda.kernel(1e-3))).batch(5) == pytest.approx([1e-3] * 5)
    assert events_timer.flush.count == before + 5  # type: ignore[attr-defined]


def test_the_preparation_is_left_out(cuda: Cuda) -> None:
    def prepare() -> Callable[[], object]:
        cuda.submit(5e-3)  # the forward pass before a backward one
        return cuda.kernel(1e-3)

    assert timer().source(prepare).batch(4) == pytest.approx([1e-3] * 4)


def test_launches_slower_than_the_device_are_hidden(cuda: Cuda) -> None:
    source = timer().source(always(cuda.kernel(device_s=10e-6, launch_s=1e-3)))
    durations = timed(source)
    assert durations == pytest.approx([10e-6] * len(durations), rel=1e-3)
    assert source.host_seconds() == pytest.approx(1e-3)


def test_a_batch_in_which_the_host_was_late_is_thrown_away(cuda: Cuda) -> None:
    late = itertools.count()
    kernel = cuda.kernel(1e-3, launch_s=1e-5)

    def call() -> None:
        if next(late) == 5:
            cuda.host.now += 3.0  # the host was busy elsewhere between the round's two events
        kernel()

    durations = timer().source(always(call)).batch(16)
    assert next(late) == 32, "the batch with the gap, and another one"
    assert durations == pytest.approx([1e-3] * 16)


def test_a_host_that_is_always_late_is_said_with_both_times(cuda: Cuda) -> None:
    kernel = cuda.kernel(device_s=40e-6, launch_s=260e-6)

    def call() -> None:
        kernel()
        cuda.synchronize()  # as an implementation with .item() in it

    with pytest.raises(HostBound) as raised:
        timer().source(always(call)).batch(16)
    assert str(raised.value) == (
        "the device waits for the host: a round takes 303 µs to launch, 263 µs from first to last event"
    )


def test_a_queue_that_blocks_the_host_falls_back_to_smaller_batches(cuda: Cuda) -> None:
    queued: list[float] = []

    def call() -> None:
        queued.append(cuda.free_at)
        cuda.host.now += 1e-5
        cuda.submit(1e-3)
        # The driver takes 60 launches, then the host waits for the first of them.
        if len(queued) > 6 and queued[-7] > cuda.host.now:
            cuda.host.now = queued[-7] + 1e-3

    durations = timer().source(always(call)).batch(16)
    assert 1 <= len(durations) <= 4
    assert durations == pytest.approx([1e-3 - Cuda.overhead] * len(durations))


def test_the_device_is_watched_while_it_is_busy(cuda: Cuda) -> None:
    seen: list[bool] = []
    events_timer = timer(while_busy=lambda: seen.append(cuda.free_at > cuda.host.now))
    seen.clear()
    events_timer.source(always(cuda.kernel(1e-3))).batch(4)
    assert seen == [True]


def test_rounds_end_when_the_median_is_known(cuda: Cuda) -> None:
    durations = timed(timer().source(always(cuda.kernel(1e-3))))
    assert TERMS.min_rounds <= len(durations) <= 6 * 16, "six batches of equal times tell all"


def test_rounds_end_with_the_budget_but_not_before_the_fewest(cuda: Cuda) -> None:
    noise = random.Random(1)
    quick = timed(timer().source(lambda: cuda.kernel(10e-3 * noise.uniform(0.5, 1.5))))
    assert len(quick) == pytest.approx(TERMS.budget_s / 10e-3, rel=0.2)
    slow = timed(timer().source(lambda: cuda.kernel(1.0 * noise.uniform(0.5, 1.5))))
    assert len(slow) == TERMS.min_rounds


class Stepping:
    """A source whose every third batch is 2 % slower: a clock that steps, slower than a batch is long."""

    def __init__(self) -> None:
        self.batches = 0

    def batch(self, size: int) -> list[float]:
        self.batches += 1
        return [1e-3 if self.batches % 3 else 1.02e-3] * size

    def host_seconds(self) -> None:
        return None


def test_rounds_of_one_batch_are_not_taken_as_independent() -> None:
    (turns,) = take_turns([Stepping()], TERMS, random.Random(0))
    assert half_width(turns.durations) == 0, "two thirds of the rounds agree"
    assert turns.known_to == pytest.approx(0.01)
    assert len(turns.durations) == TERMS.max_rounds


def test_a_bimodal_kernel_gets_all_rounds_and_keeps_both_modes(cuda: Cuda) -> None:
    modes = itertools.cycle((1e-4, 2e-4))
    durations = timed(timer().source(lambda: cuda.kernel(next(modes))))
    assert len(durations) == TERMS.max_rounds
    assert sorted(durations)[10] == pytest.approx(1e-4)
    assert sorted(durations)[90] == pytest.approx(2e-4)


def drifting(cuda: Cuda) -> Iterator[float]:
    """Slow the device down by a tenth of a percent with every kernel."""
    while True:
        cuda.speed *= 0.999
        yield 1e-3


def test_drift_hits_all_alike(cuda: Cuda) -> None:
    seconds = drifting(cuda)
    events_timer = timer()
    sources = [events_timer.source(lambda name=name: cuda.kernel(next(seconds), name=name)) for name in "ab"]
    one, other = take_turns(sources, TERMS, random.Random(0))
    assert median(one.durations) > 1.05e-3, "the device did slow down"
    assert median(other.durations) == pytest.approx(median(one.durations), rel=0.05)


def test_turns_are_batches_in_shuffled_order(cuda: Cuda) -> None:
    noise = random.Random(2)
    events_timer = timer()
    sources = [
        events_timer.source(lambda name=name: cuda.kernel(1e-3 * noise.uniform(0.9, 1.1), name=name)) for name in "abc"
    ]
    cuda.log.clear()
    take_turns(sources, TERMS, random.Random(3))
    order = [name for name, _ in itertools.groupby(cuda.log)]
    timed_order = order[order.index("c") + 1 :]
    turns = {tuple(timed_order[i : i + 3]) for i in range(0, 9, 3)}
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(turns) > 1, "not the same order each time around"
    assert max(cuda.log.count(name) for name in "abc") <= 1.5 * min(cuda.log.count(name) for name in "abc")


def test_a_throttled_device_shows_in_what_was_watched(cuda: Cuda) -> None:
    speeds: list[float] = []
    events_timer = timer(while_busy=lambda: speeds.append(cuda.speed))
    speeds.clear()
    cuda.speed = 0.5
    assert median(timed(events_timer.source(always(cuda.kernel(1e-3))))) == pytest.approx(2e-3, rel=1e-2)
    assert set(speeds) == {0.5}


def test_the_warm_up_goes_on_until_the_median_is_flat(cuda: Cuda) -> None:
    warming = [3e-3 * 0.98**i for i in range(60)]
    seconds = itertools.chain(warming, itertools.repeat(warming[-1]))
    source = timer().source(lambda: cuda.kernel(next(seconds)))
    warm_up(source, TERMS)
    assert next(seconds) == pytest.approx(warming[-1])


def test_the_warm_up_has_a_cap(cuda: Cuda) -> None:
    noise = random.Random(4)
    events_timer = timer()
    before = cuda.host.now
    warm_up(events_timer.source(lambda: cuda.kernel(1e-3 * noise.uniform(0.5, 1.5))), TERMS)
    assert cuda.host.now - before < TERMS.warmup_cap_s + 0.1


def test_what_one_source_raises_does_not_stop_the_others(cuda: Cuda) -> None:
    def broken() -> Callable[[], object]:
        raise RuntimeError("no kernel image")

    events_timer = timer()
    bad, good = take_turns(
        [events_timer.source(broken), events_timer.source(always(cuda.kernel(1e-3)))], TERMS, random.Random(0)
    )
    assert str(bad.error) == "no kernel image"
    assert not bad.durations
    assert good.error is None
    assert len(good.durations) >= TERMS.min_rounds


def test_wall_gives_the_seconds_of_the_call_alone(host: Host) -> None:
    def prepare() -> Callable[[], object]:
        host.now += 7.0
        return host.work(0.25)

    assert WallTimer().source(prepare).batch(3) == pytest.approx([0.25] * 3)


def test_wall_waits_until_the_threads_of_others_are_quiet(host: Host) -> None:
    host.busy = 0.012  # an OpenMP runtime that spins for 12 ms
    still_busy: list[float] = []

    def prepare() -> Callable[[], object]:
        still_busy.append(host.busy)
        return host.work(1e-3)

    WallTimer().source(prepare).batch(2)
    assert still_busy == [0.0] * 3, "one call that wakes this one's own threads, and two rounds"


def test_wall_does_not_wait_for_ever(host: Host) -> None:
    host.busy = 1e9
    before = host.now
    WallTimer().source(always(host.work(1e-3))).batch(1)
    assert host.now - before < 0.1


def test_hiccups_of_the_host_far_apart_do_not_add_up(cuda: Cuda) -> None:
    calls = itertools.count()
    kernel = cuda.kernel(1e-3, launch_s=1e-5)

    def call() -> None:
        if next(calls) % 100 == 5:
            cuda.host.now += 3.0
        kernel()

    source = timer().source(always(call))
    for _ in range(40):
        assert source.batch(16) == pytest.approx([1e-3] * 16)
    assert next(calls) > 700, "many batches were thrown away"


def test_no_median_is_known_before_the_power_limiter_has_its_clock(cuda: Cuda) -> None:
    terms = dataclasses.replace(TERMS, least_s=0.15)
    durations = timed(timer().source(always(cuda.kernel(2e-3))), terms)
    assert sum(durations) == pytest.approx(0.15, rel=0.3)


def test_a_lost_device_ends_all_turns(cuda: Cuda) -> None:
    def broken() -> Callable[[], object]:
        raise RuntimeError("illegal address")

    events_timer = timer()
    sources = [events_timer.source(broken), events_timer.source(always(cuda.kernel(1e-3)))]
    first, second = take_turns(sources, TERMS, random.Random(0), lost=lambda: True)
    assert first.error is not None
    assert second.error is None
    assert not second.durations


def test_energy_is_that_between_two_steps_of_the_counter(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=lambda: host.now))

    def joules() -> float:
        return 500.0 * (host.now // 0.1) * 0.1  # 500 W, told ten times a second

    found = energy.energy_per_call(always(host.work(1e-3)), lambda: None, joules, loop_s=0.6)
    assert found == pytest.approx(0.5, rel=0.03)
    assert energy.energy_per_call(always(host.work(1e-3)), lambda: None, lambda: None, loop_s=0.6) is None
    assert energy.energy_per_call(always(host.work(1e-3)), lambda: None, joules, loop_s=0.05) is None, "no two steps"
