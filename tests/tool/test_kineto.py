"""Kernels as the profiler reports them: what belongs to which call, sums and spans, and disagreement with the timer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from pytest_attn.perf import kineto
from pytest_attn.perf.kineto import (
    Flush,
    Kernel,
    KinetoSource,
    KinetoTimer,
    LostTrack,
    Round,
    StrayWork,
    Trace,
    profile_kernels,
    split,
    trace,
)
from pytest_attn.perf.measure import Implausible, disagreement

MARK = "at::cuda::(anonymous namespace)::spin_kernel(long)"
FILL = "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<int>, ...>"


def queue(*names: str, micros: float = 10.0, gap: float = 2.0) -> list[Kernel]:
    """Kernels of ``micros`` each, one after the other with ``gap`` between them."""
    return [Kernel(name, index * (micros + gap) * 1e-6, micros * 1e-6) for index, name in enumerate(names)]


def names(traces: list[Trace]) -> list[list[str]]:
    return [[kernel.name for kernel in traced.kernels] for traced in traces]


def traced(*micros: float, gap: float = 0.0) -> Trace:
    start, kernels = 0.0, []
    for each in micros:
        kernels.append(Kernel("kernel", start * 1e-6, each * 1e-6))
        start += each + gap
    return Trace(tuple(kernels))


def test_a_call_is_what_ran_between_its_marks() -> None:
    kernels = queue("prepare", FILL, MARK, "a", "b", MARK, FILL, MARK, "a", MARK)
    assert names(split(kernels, [True, False])) == [["a", "b"], ["a"]]
    assert names(split(queue(FILL, MARK, MARK, FILL, MARK, "a", MARK), [False, False])) == [[], ["a"]]


@pytest.mark.parametrize("lost", [(MARK, "a", MARK, FILL, MARK, "b"), (MARK, MARK, "a", MARK, FILL, MARK, "b", MARK)])
def test_a_missing_or_an_extra_mark_is_an_error_and_not_another_time(lost: tuple[str, ...]) -> None:
    with pytest.raises(LostTrack, match=r"of the 4 marks around 2 calls"):
        split(queue(*lost), [True, True])


def test_a_kernel_that_outlasts_its_call_is_on_another_stream() -> None:
    mark, work, end = queue(MARK, "a", MARK)
    longer = Kernel("side", work.start_s, 100e-6)
    with pytest.raises(StrayWork, match=r"outlasts the call"):
        split([mark, work, longer, end], [True])


def test_a_kernel_outside_of_its_call_is_on_another_stream() -> None:
    kernels = queue(FILL, "side", MARK, "a", MARK)
    assert names(split(kernels, [True])) == [["a"]], "where the preparation runs kernels of its own nobody can tell"
    with pytest.raises(StrayWork, match=r"1 kernels ran outside of 1 calls"):
        split(kernels, [False])
    with pytest.raises(StrayWork, match=r"2 kernels ran outside of 1 calls"):
        split(queue(FILL, "prepare", MARK, "a", MARK, "late", "late"), [True])


def test_a_flush_that_the_profiler_lost_is_nobodys_work() -> None:
    with pytest.raises(LostTrack, match=r"1 of the 2 flushes before 2 calls"):
        split(queue(MARK, "a", MARK, FILL, MARK, "a", MARK), [False, False])


def test_sum_and_busy_time_leave_gaps_out() -> None:
    (call,) = split(queue(MARK, "a", "b", "c", MARK), [True])
    assert call.kernel_s == pytest.approx(30e-6)
    assert call.busy_s == pytest.approx(30e-6)
    assert (Trace(()).kernel_s, Trace(()).busy_s, Trace(()).stream_s) == (0, 0, 0)


def test_kernels_side_by_side_count_twice_in_the_sum_and_once_in_the_busy_time() -> None:
    both = Trace((Kernel("long", 0.0, 100e-6, 7), Kernel("short", 10e-6, 20e-6, 13), Kernel("later", 90e-6, 20e-6, 13)))
    assert both.kernel_s == pytest.approx(140e-6)
    assert both.busy_s == pytest.approx(110e-6)  # the long one ends after the short one, and the last after it
    assert both.stream_s == pytest.approx(100e-6)


@pytest.mark.parametrize(
    ("micros", "calls"),
    [
        (100.0, [traced(100.0)]),
        (102.9, [traced(100.0)]),  # 2 % and a microsecond
        (97.1, [traced(100.0)]),
        (104.9, [traced(50.0, 50.0)]),  # and two more for each gap
        (1.9, [traced(1.0)]),
    ],
)
def test_a_difference_that_the_device_explains_is_no_note(micros: float, calls: list[Trace]) -> None:
    assert disagreement(micros * 1e-6, calls) is None


def test_a_difference_is_a_sentence_with_both_times() -> None:
    call = traced(60.0, 40.0)
    assert disagreement(120e-6, [call]) == (
        "the timer says 120.0 µs, its 2 kernels take 100.0 µs under the profiler: the device stood idle between them"
    )
    assert disagreement(80e-6, [call]) == (
        "the timer says 80.0 µs, its 2 kernels take 100.0 µs under the profiler: they overlap, or ran slower there"
    )


@pytest.mark.parametrize("micros", [80.0, 120.0])
def test_one_kernel_neither_overlaps_nor_leaves_the_device_idle(micros: float) -> None:
    sentence = f"the timer says {micros:.1f} µs, its kernel takes 100.0 µs under the profiler"
    assert disagreement(micros * 1e-6, [traced(100.0)]) == sentence


def test_a_time_much_shorter_than_the_kernels_is_no_time() -> None:
    with pytest.raises(Implausible, match=r"saw 3.0 µs of a call whose kernels take 100.0 µs"):
        disagreement(3e-6, [traced(60.0, 40.0)])


def test_streams_that_a_trace_runs_one_after_the_other_do_not_make_a_time_implausible() -> None:
    quarters = Trace(tuple(Kernel("attention", at * 200e-6, 200e-6, at) for at in range(4)))
    sentence = disagreement(340e-6, [quarters], in_parts=True)
    assert sentence is not None
    assert "its 4 kernels take 800.0 µs under the profiler: they overlap, or ran slower there" in sentence
    with pytest.raises(Implausible):
        disagreement(90e-6, [quarters], in_parts=True)


def test_streams_that_ran_before_the_timer_began_make_a_time_implausible() -> None:
    """Of work on streams that do not wait for the caller's, the timer sees the end."""
    hidden = Trace(tuple(Kernel("attention", at * 100e-6, 100e-6, at) for at in range(9)))
    with pytest.raises(Implausible, match=r"saw 51.0 µs of a call whose kernels take 900.0 µs"):
        disagreement(51e-6, [hidden])


def test_gaps_of_a_traced_call_do_not_make_its_time_implausible() -> None:
    # Ten kernels of 2 µs, 30 µs with hidden launches; traced, the host needs 20 µs for each.
    sentence = disagreement(30e-6, [traced(*[2.0] * 10, gap=18.0)])
    assert sentence is None


class Profiler:
    """Stands for ``torch.profiler.profile``: reports the kernels that were queued while it was on, out of order."""

    def __init__(self, device: FakeDevice, **options: Any) -> None:
        self._device = device
        self.profiler = SimpleNamespace(kineto_results=self)

    def __enter__(self) -> Profiler:
        self._device.queued.clear()
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def events(self) -> list[Any]:
        launch = SimpleNamespace(device_type=lambda: SimpleNamespace(name="CPU"), name=lambda: "cudaLaunchKernel")
        return [launch, *(reported(kernel) for kernel in reversed(self._device.queued))]


def reported(kernel: Kernel) -> Any:
    return SimpleNamespace(
        name=lambda: kernel.name,
        start_ns=lambda: round(kernel.start_s * 1e9),
        duration_ns=lambda: round(kernel.duration_s * 1e9),
        device_resource_id=lambda: kernel.stream,
        device_type=lambda: SimpleNamespace(name="CUDA"),
    )


class FakeDevice:
    """A stream: what is queued runs at once, one after the other."""

    def __init__(self) -> None:
        self.queued: list[Kernel] = []
        self.now = 0.0
        self.reports = True

    def kernel(self, name: str, micros: float) -> None:
        if self.reports:
            self.queued.append(Kernel(name, self.now, micros * 1e-6))
        self.now += micros * 1e-6


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    fake = FakeDevice()
    monkeypatch.setattr("torch.profiler.profile", lambda **options: Profiler(fake, **options))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: fake.kernel(MARK, 1.0))
    monkeypatch.setattr(kineto, "Flush", lambda device: lambda: fake.kernel(FILL, 30.0))
    return fake


def flush(device: FakeDevice) -> Flush:
    return cast(Flush, lambda: device.kernel(FILL, 30.0))


def attention(device: FakeDevice) -> Callable[[], Callable[[], object]]:
    """A backward pass of two kernels, with a forward that is its preparation."""

    def prepare() -> Callable[[], object]:
        device.kernel("forward", 50.0)

        def call() -> None:
            device.kernel("dot_do_o", 5.0)
            device.kernel("backward", 95.0)

        return call

    return prepare


def test_only_what_ran_on_the_device_is_a_kernel_in_the_order_of_time(device: FakeDevice) -> None:
    kernels = profile_kernels(lambda: attention(device)()())
    assert [kernel.name for kernel in kernels] == ["forward", "dot_do_o", "backward"]
    assert kernels[1].start_s == pytest.approx(50e-6)
    assert kernels[2].duration_s == pytest.approx(95e-6)


def test_starts_are_told_to_the_nanosecond(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def at(ns: int) -> Any:
        return SimpleNamespace(
            name=lambda: str(ns),
            start_ns=lambda: 1_790_000_000_000_000_000 + ns,
            duration_ns=lambda: 10,
            device_resource_id=lambda: 7,
            device_type=lambda: SimpleNamespace(name="CUDA"),
        )

    monkeypatch.setattr(Profiler, "events", lambda profiler: [at(40), at(0), at(13)])
    starts = [(kernel.name, kernel.start_s) for kernel in profile_kernels(lambda: None)]
    assert starts == [("0", 0.0), ("13", pytest.approx(13e-9)), ("40", pytest.approx(40e-9))]


def test_preparation_and_flush_are_no_part_of_a_trace(device: FakeDevice) -> None:
    traces = trace([Round(attention(device), prepares_on_device=True)] * 3, flush(device))
    assert names(traces) == [["dot_do_o", "backward"]] * 3


def test_a_trace_begins_on_a_device_that_has_worked(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(kineto, "time", SimpleNamespace(perf_counter=lambda: 0.0015 * next(clock)))
    (call,) = trace([Round(attention(device), prepares_on_device=True)], flush(device), warm_s=0.005)
    assert len(call.kernels) == 2
    assert device.now == pytest.approx(3 * 180e-6 + 180e-6 + 2e-6), "three calls in 5 ms, and the one that was traced"


def test_the_calls_ahead_of_a_trace_are_the_whole_and_not_a_half(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(kineto, "time", SimpleNamespace(perf_counter=lambda: 0.003 * next(clock)))
    order: list[str] = []

    def prepare(name: str) -> Any:
        order.append(name)
        return attention(device)()

    rounds = [Round(functools.partial(prepare, name), prepares_on_device=True) for name in ("half", "whole")]
    trace(rounds, flush(device), warm_s=0.005)
    assert order == ["whole", "half", "whole"]


def test_the_flush_writes_twice_the_second_level_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 50 * 2**20
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=size))
    written = Flush(torch.device("cpu"))
    assert written.nbytes == 2 * size
    written._buffer.fill_(7)
    written()
    assert not written._buffer.any()


def test_a_round_without_a_kernel_is_no_time_of_zero(device: FakeDevice) -> None:
    turn = iter((1.0, 0.0, 1.0))

    def prepare() -> Callable[[], object]:
        lasts = next(turn)
        return (lambda: device.kernel("a", 5.0)) if lasts else (lambda: None)

    with pytest.raises(RuntimeError, match=r"^torch\.profiler reports no kernels"):
        KinetoTimer(torch.device("cuda")).source(prepare).batch(3)


def test_the_kineto_timer_gives_the_summed_kernels_of_each_round(device: FakeDevice) -> None:
    source = KinetoTimer(torch.device("cuda")).source(attention(device))
    assert source.batch(4) == pytest.approx([100e-6] * 4)


def test_a_profiler_that_sees_nothing_is_an_error_for_the_timer(device: FakeDevice) -> None:
    device.reports = False
    source: KinetoSource = KinetoTimer(torch.device("cuda")).source(attention(device))
    with pytest.raises(RuntimeError, match=r"^torch\.profiler reports no kernels; is another profiler attached"):
        source.batch(4)
