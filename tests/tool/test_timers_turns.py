"""Turns on a fake device: how many rounds, in which order, under drift, two modes, throttling and failures."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import random
import weakref
from collections.abc import Callable, Iterator
from statistics import median
from types import SimpleNamespace

import pytest

from pytest_attn.perf.contract import Contract
from pytest_attn.perf.rounds import take_turns, warm_up
from pytest_attn.perf.spread import half_width
from tests.tool.fake_cuda import Cuda, Host, always, timer
from tests.tool.fake_cuda import cuda as cuda
from tests.tool.fake_cuda import host as host

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


def timed(source: object, terms: Contract = TERMS) -> list[float]:
    (turns,) = take_turns([source], terms, random.Random(0))  # type: ignore[list-item]
    if turns.error is not None:
        raise turns.error
    return turns.durations


def test_launches_slower_than_the_device_are_hidden(cuda: Cuda) -> None:
    source = timer().source(always(cuda.kernel(device_s=10e-6, launch_s=1e-3)))
    durations = timed(source)
    assert durations == pytest.approx([10e-6] * len(durations), rel=1e-3)
    assert source.host_seconds() == pytest.approx(1e-3)


def test_rounds_end_when_the_median_is_known(cuda: Cuda) -> None:
    durations = timed(timer().source(always(cuda.kernel(1e-3))))
    assert TERMS.min_rounds <= len(durations) <= 6 * 16, "six batches of equal times tell all"


def test_rounds_end_with_the_budget_but_not_before_the_fewest(cuda: Cuda) -> None:
    noise = random.Random(1)
    quick = timed(timer().source(lambda: cuda.kernel(10e-3 * noise.uniform(0.5, 1.5))))
    assert len(quick) == pytest.approx(TERMS.budget_s / 10e-3, rel=0.2)
    slow = timed(timer().source(lambda: cuda.kernel(1.0 * noise.uniform(0.5, 1.5))))
    assert len(slow) == TERMS.min_rounds


def test_what_lies_between_the_rounds_counts_as_spent(host: Host) -> None:
    noise = random.Random(5)

    class Preparing:
        """Rounds of a tenth of a millisecond, with a hundredth of a second before each."""

        def batch(self, size: int) -> list[float]:
            host.work(1e-2 * size)()
            return [1e-4 * noise.uniform(0.5, 1.5) for _ in range(size)]

    assert len(timed(Preparing())) == pytest.approx(TERMS.budget_s / 1e-2, rel=0.1)


def test_each_turn_runs_within_what_is_around_it_and_that_does_not_count(cuda: Cuda) -> None:
    depths: list[int] = []
    inside = 0

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        nonlocal inside
        inside += 1
        cuda.host.work(1.0)()
        yield
        inside -= 1

    def prepare() -> Callable[[], object]:
        depths.append(inside)
        return cuda.kernel(1e-3)

    (turns,) = take_turns([timer().source(prepare)], TERMS, random.Random(0), around=around)
    assert set(depths) == {1}
    assert 0 < turns.spent_s < 1


def test_what_is_around_a_turn_may_end_it_for_that_one_alone(cuda: Cuda) -> None:
    ran: list[str] = []

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        yield
        if ran[-1] == "bad" and len(set(ran)) == 2:
            raise ValueError("changed something")

    def prepare(name: str) -> Callable[[], object]:
        ran.append(name)
        return cuda.kernel(1e-3)

    events_timer = timer()
    sources = [events_timer.source(functools.partial(prepare, name)) for name in ("bad", "good")]
    bad, good = take_turns(sources, TERMS, random.Random(0), around=around)
    assert str(bad.error) == "changed something"
    assert good.error is None
    assert len(good.durations) >= TERMS.min_rounds


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


def test_a_slow_call_is_warm_when_two_rounds_agree(cuda: Cuda) -> None:
    calls: list[float] = []

    def prepare() -> Callable[[], object]:
        calls.append(30e-3 if len(calls) else 40e-3)
        return cuda.kernel(calls[-1])

    assert warm_up(timer().source(prepare), TERMS) == 1
    assert calls == [40e-3, 30e-3, 30e-3], "40 and 30 ms differ, 30 and 30 do not"


def test_the_warm_up_has_a_cap(cuda: Cuda) -> None:
    slower = (1e-3 * 1.02**i for i in itertools.count())
    events_timer = timer()
    before = cuda.host.now
    warm_up(events_timer.source(lambda: cuda.kernel(next(slower))), TERMS)
    assert TERMS.warmup_cap_s <= cuda.host.now - before < TERMS.warmup_cap_s + 0.1


@pytest.mark.parametrize(
    ("first_s", "others_s", "count"),
    [
        (0.001, 0.012, 3),  # two are alike, and the second is half of the least time, but both together are less
        (0.4, 0.4, 2),  # one batch says nothing, however long it was
    ],
)
def test_the_warm_up_has_its_seconds_however_flat_the_median(
    monkeypatch: pytest.MonkeyPatch, first_s: float, others_s: float, count: int
) -> None:
    lengths: list[float] = []

    def batch(size: int) -> list[float]:
        lengths.append(others_s if lengths else first_s)
        return [1e-3] * size

    monkeypatch.setattr("pytest_attn.perf.rounds.time", SimpleNamespace(perf_counter=lambda: sum(lengths)))
    warm_up(SimpleNamespace(batch=batch, host_seconds=lambda: None), TERMS)
    assert len(lengths) == count


def test_no_median_is_known_before_the_power_limiter_has_its_clock(cuda: Cuda) -> None:
    terms = dataclasses.replace(TERMS, least_s=0.15)
    durations = timed(timer().source(always(cuda.kernel(2e-3))), terms)
    assert sum(durations) == pytest.approx(0.15, rel=0.3)


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


def test_what_a_failed_call_held_is_free_while_the_others_take_turns(cuda: Cuda) -> None:
    class Scores:
        """Stands for a large tensor."""

    held: list[weakref.ref[Scores]] = []

    def broken() -> Callable[[], object]:
        scores = Scores()
        held.append(weakref.ref(scores))
        try:
            raise MemoryError
        except MemoryError as error:
            raise RuntimeError("no room") from error

    def working() -> Callable[[], object]:
        assert held[0]() is None
        return cuda.kernel(1e-3)

    events_timer = timer()
    bad, good = take_turns([events_timer.source(broken), events_timer.source(working)], TERMS, random.Random(0))
    assert str(bad.error) == "no room"
    assert good.error is None


def test_a_lost_device_ends_all_turns(cuda: Cuda) -> None:
    def broken() -> Callable[[], object]:
        raise RuntimeError("illegal address")

    events_timer = timer()
    sources = [events_timer.source(broken), events_timer.source(always(cuda.kernel(1e-3)))]
    first, second = take_turns(sources, TERMS, random.Random(0), lost=lambda: True)
    assert first.error is not None
    assert (first.lost, second.lost) == (True, False)
    assert second.error is None
    assert not second.durations
