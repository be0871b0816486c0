"""What the trace of a measured call proves on a CUDA device, here one that only keeps a log of its kernels."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from attn_impls import Direction, Implementation, Problem
from attn_impls.naive import naive
from attn_impls.problem import FULL
from pytest_attn.correctness.running import run
from pytest_attn.correctness.standard import Standard
from pytest_attn.perf import kineto
from pytest_attn.perf import measure as measuring
from pytest_attn.perf.kineto import Kernel
from pytest_attn.perf.measure import measure_alone
from pytest_attn.perf.record import Memory, Record
from pytest_attn.perf.wall import WallSource
from tests.tool.quick import instruments
from tests.tool.test_kineto import FILL, MARK, FakeDevice, flush
from tests.tool.test_kineto import device as device

SMALL = Problem(1, 2, 2, 16, 16, 8, "fp32", FULL)


@pytest.fixture(autouse=True)
def others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a round take a tenth of a millisecond, and leave out the memory, which the profiler of a CPU tells."""

    def batch(source: WallSource, size: int) -> list[float]:
        for _ in range(size):
            source._prepare()()
        return [1e-4] * size

    monkeypatch.setattr(WallSource, "batch", batch)
    monkeypatch.setattr(measuring, "memory_of", lambda *arguments: (Memory(0, 0), run(*arguments[:4])))


def measured(
    device: FakeDevice,
    ran: Callable[[torch.Tensor], object],
    direction: Direction = Direction.FWD,
    problem: Problem = SMALL,
) -> Record:
    """Measure a right implementation that calls ``ran(q)``, which queues its kernels."""

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        ran(q)
        out: torch.Tensor = naive(q, k, v, problem)
        return out

    tools = instruments()
    tools.flush = flush(device)
    return measure_alone(Implementation("mine", attention), problem, direction, tools).record


def test_kernels_are_recorded(device: FakeDevice) -> None:
    record = measured(device, lambda q: device.kernel("attention", 100.0))
    assert (record.status, record.note) == ("ok", None)
    assert record.kernels == ({"name": "attention", "share": 1.0, "count": 1},)


def test_who_runs_no_kernel_computed_nothing(device: FakeDevice) -> None:
    record = measured(device, lambda q: None)
    assert (record.status, record.reason) == ("error", "ran no kernel in 5 of 5 calls")


def test_no_kernel_is_needed_where_there_is_nothing_to_compute(device: FakeDevice) -> None:
    nothing = Problem(0, 2, 2, 16, 16, 8, "fp32", FULL)
    assert measured(device, lambda q: None, problem=nothing).status == "ok"


def test_who_remembers_by_version_runs_no_kernel_when_nothing_changed(device: FakeDevice) -> None:
    memory: set[object] = set()

    def remember(q: torch.Tensor) -> None:
        if (q.data_ptr(), q._version) not in memory:
            device.kernel("attention", 100.0)
        memory.add((q.data_ptr(), q._version))

    record = measured(device, remember)
    assert (record.status, record.reason) == ("error", "ran no kernel in 5 of 5 calls")


def test_a_kernel_that_runs_after_its_call_is_stray(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes with the next call's flush, as from a stream that nobody waits for."""
    late: list[str] = []

    def ran(q: torch.Tensor) -> None:
        device.kernel("attention", 100.0)
        late.append("copy")

    def fill(name: str, micros: float) -> None:
        queue(name, micros)
        if name == FILL and late:
            queue(late.pop(), 50.0)

    queue = device.kernel
    monkeypatch.setattr(device, "kernel", fill)
    record = measured(device, ran)
    assert record.status == "error"
    assert str(record.reason).startswith("left work on another stream: ")


def test_the_forward_pass_before_a_backward_pass_is_not_stray(device: FakeDevice) -> None:
    def ran(q: torch.Tensor) -> None:
        device.kernel("forward", 50.0)
        q.register_hook(lambda gradient: device.kernel("backward", 100.0))

    record = measured(device, ran, Direction.BWD)
    assert (record.status, record.reason) == ("ok", None)
    assert record.kernels == ({"name": "backward", "share": 1.0, "count": 1},)


def test_one_slow_call_under_the_profiler_is_not_what_a_call_takes(device: FakeDevice) -> None:
    def ran(q: torch.Tensor) -> None:
        first = [kernel.name for kernel in device.queued].count(MARK) == 1
        device.kernel("attention", 1000.0 if first else 100.0)

    record = measured(device, ran)
    assert record.kernel_s == pytest.approx(100e-6)
    assert record.note is None


def test_what_the_profiler_lost_once_is_traced_again(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: list[None] = []
    real = kineto.profile_kernels

    def profile(run: Callable[[], object]) -> list[Kernel]:
        sessions.append(None)
        return real(run)[len(sessions) == 1 :]

    monkeypatch.setattr(kineto, "profile_kernels", profile)
    record = measured(device, lambda q: device.kernel("attention", 100.0))
    assert (record.status, record.note, len(sessions)) == ("ok", None, 2)


def test_while_they_are_timed_the_truth_takes_no_memory(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    real = measuring.take_turns

    def turns(*arguments: Any) -> Any:
        assert len(arguments[0]) == 1
        held.append(sum(isinstance(each, Standard) for each in gc.get_objects()))
        return real(*arguments)

    monkeypatch.setattr(measuring, "take_turns", turns)
    assert measured(device, lambda q: device.kernel("attention", 100.0)).status == "ok"
    assert held == [0]
