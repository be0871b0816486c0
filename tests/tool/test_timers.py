"""Timers under a fake clock and on a fake CUDA device: overhead, launch gaps, a late host, busy threads, energy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from pytest_attn.perf import energy, events
from pytest_attn.perf.events import EventTimer
from pytest_attn.perf.kineto import Kernel
from pytest_attn.perf.timers import HostBound
from pytest_attn.perf.wall import WallTimer
from tests.tool.fake_cuda import Cuda, Host, always, timer
from tests.tool.fake_cuda import Flush as FakeFlush
from tests.tool.fake_cuda import cuda as cuda
from tests.tool.fake_cuda import host as host


def test_events_give_the_kernels_time_without_the_cost_of_the_pair(cuda: Cuda) -> None:
    events_timer = timer()
    assert events_timer.overhead_s == pytest.approx(3e-6)
    assert events_timer.overhead_from == "cupti"
    assert events_timer.source(always(cuda.kernel(20e-6))).batch(16) == pytest.approx([20e-6] * 16)


def test_without_a_profiler_the_pair_around_nothing_is_taken_off(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "profile_kernels", lambda run: [])
    events_timer = timer()
    assert events_timer.overhead_s == pytest.approx(0.0, abs=1e-7)
    assert events_timer.overhead_from == "nothing"


def test_a_time_is_at_least_one_step_of_the_clock(cuda: Cuda) -> None:
    # Less than the cost of the pair: neither nothing nor negative.
    assert timer().source(always(lambda: cuda.submit(1e-6))).batch(4) == [32e-9] * 4


def test_a_pair_that_reads_less_than_the_kernel_costs_nothing(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "overhead", -2e-6)
    assert timer().overhead_s == 0.0, "CUPTI and the events differ by their resolution, and no time is added"


def test_the_calibration_flushes_as_the_rounds_do(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []

    def run(body: Callable[[], object]) -> list[Kernel]:
        before = made[0].count
        cuda.launched.clear()
        body()
        cuda.synchronize()
        flushed.append(made[0].count - before)
        return [Kernel("spin_kernel(long)", at, seconds) for at, seconds in enumerate(cuda.launched)]

    made: list[FakeFlush] = []
    monkeypatch.setattr(events, "Flush", lambda device: made.append(FakeFlush(cuda)) or made[0])
    monkeypatch.setattr(events, "profile_kernels", run)
    timer()
    assert flushed == [16] * 16, "once before each kernel that CUPTI times"


def test_a_spin_has_an_end_however_slow_the_host(cuda: Cuda) -> None:
    source = timer().source(always(cuda.kernel(1e-3, launch_s=0.1)))
    cuda.launched.clear()
    assert source.batch(16) == pytest.approx([1e-3]), "one round of 0.1 s is hidden, 16 are not"
    assert max(cuda.launched) == pytest.approx(0.251, rel=1e-3)


def test_a_calibration_of_another_process_needs_no_profiler(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "profile_kernels", lambda run: pytest.fail("a profiler was started"))
    events_timer = EventTimer(torch.device("cpu"), overhead_s=2e-6)
    (seconds,) = set(events_timer.source(always(cuda.kernel(20e-6))).batch(1))
    assert seconds == pytest.approx(21e-6), "a pair costs 3 us here, of which 2 are taken off"


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


def test_energy_is_that_between_two_steps_of_the_counter(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=lambda: host.now))

    def joules() -> float:
        return 500.0 * (host.now // 0.1) * 0.1  # 500 W, told ten times a second

    found = energy.energy_per_call(always(host.work(1e-3)), lambda: None, joules, loop_s=0.6)
    assert found == pytest.approx(0.5, rel=0.03)
    assert energy.energy_per_call(always(host.work(1e-3)), lambda: None, lambda: None, loop_s=0.6) is None
    assert energy.energy_per_call(always(host.work(1e-3)), lambda: None, joules, loop_s=0.05) is None, "no two steps"
