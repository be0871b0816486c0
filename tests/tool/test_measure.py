"""Measuring on a CPU: what is timed and what is not, and a status with a reason for whatever happens."""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attn_impls import Capabilities, Implementation, Unavailable, as_implementation
from attn_impls.naive import naive
from attn_impls.problem import CAUSAL, Direction, Problem
from pytest_attn.out_of_memory import is_out_of_memory
from pytest_attn.perf import check
from pytest_attn.perf import device as device_module
from pytest_attn.perf.measure import measure, measure_alone
from pytest_attn.perf.record import Record
from pytest_attn.perf.spread import half_width
from pytest_attn.perf.timers import HostBound
from pytest_attn.perf.wall import WallSource
from tests.tool.fake_cuda import Host
from tests.tool.fake_cuda import host as host
from tests.tool.quick import CPU, QUICK, instruments

SMALL = Problem(1, 2, 2, 16, 16, 8, "fp32", CAUSAL)


def measured(fn: Any, problem: Problem = SMALL, direction: Direction = Direction.FWD) -> Record:
    return measure(as_implementation(fn, "mine"), problem, direction, CPU, QUICK)


def right(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
    result: torch.Tensor = naive(q, k, v, problem)
    return result


@pytest.mark.parametrize("direction", Direction)
def test_a_right_implementation(direction: Direction) -> None:
    result = measure_alone(as_implementation(right, "mine"), SMALL, direction, instruments())
    record = result.record
    assert record.key == ("mine", SMALL.id, direction.value)
    assert (record.status, record.reason, record.contract) == ("ok", None, "wall/2")
    assert record.time_s is not None
    assert record.time_s.n == len(result.durations) == 3
    assert record.time_s.median == sorted(result.durations)[1]
    assert min(result.durations) <= record.time_s.p10 <= record.time_s.median <= record.time_s.p90
    assert record.time_s.ci == half_width(result.durations)
    assert record.accuracy is not None
    assert 0 <= record.accuracy["error_ratio"] <= 1
    assert record.memory is not None
    assert (record.memory.saved_bytes is None) == (direction is Direction.FWD)


def test_unsupported() -> None:
    record = measured(right, dataclasses.replace(SMALL, kv_heads=1))
    assert (record.status, record.reason, record.time_s) == ("unsupported", "has no grouped-query attention", None)


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.50 GiB. GPU 0 has 1 GiB free."),
            "oom",
            "out of memory: asked for 12.50 GiB",
        ),
        (
            RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."),
            "oom",
            "out of memory: asked for 64 bytes",
        ),
        (MemoryError(), "oom", "out of memory"),
        (RuntimeError("kernel exploded\nat line 3"), "error", "RuntimeError: kernel exploded"),
        (ValueError(), "error", "ValueError: without a message"),
    ],
)
def test_whatever_is_raised_is_recorded(error: Exception, status: str, reason: str) -> None:
    def attention(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        raise error

    record = measured(attention)
    assert (record.status, record.reason, record.time_s, record.memory) == (status, reason, None, None)


def test_one_that_fails_in_a_later_round() -> None:
    calls: list[None] = []

    def attention(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        calls.append(None)
        if len(calls) > 3:
            raise torch.OutOfMemoryError("Tried to allocate 2.00 MiB")
        return right(q, k, v, problem)

    record = measured(attention)
    assert (record.status, record.reason, record.time_s) == ("oom", "out of memory: asked for 2.00 MiB", None)


def test_a_wrong_result_is_not_timed() -> None:
    calls: list[None] = []

    def attention(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        calls.append(None)
        return right(q * 1.01, k, v, problem)

    record = measured(attention)
    assert record.status == "error"
    assert str(record.reason).startswith("wrong result: the error is ")
    assert str(record.reason).endswith(" times its budget")
    assert len(calls) == 2  # the first may compile; the second is judged
    assert measured(lambda q, k, v, problem: right(q, k, v, problem) * math.nan).status == "error"


def test_what_goes_wrong_after_the_first_call_or_batch_is_not_timed() -> None:
    calls: list[None] = []

    def right_once(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        calls.append(None)
        return right(q, k, v, problem) * (1 if len(calls) == 1 else 1.01)

    def first_batch_only(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        out = right(q, k, v, problem)
        out[1:] = 0
        return out

    assert measured(right_once).status == "error"
    two = dataclasses.replace(SMALL, batch=2)
    assert measure(Implementation("mine", first_batch_only), two, Direction.FWD, CPU, QUICK).status == "error"


def test_a_changed_input_is_not_timed() -> None:
    def attention(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        out = right(q, k, v, problem)
        q.zero_()
        return out

    assert measured(attention).reason == "it changed its input q"


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_a_wrong_result_of_grouped_heads_is_seen(kv_heads: int) -> None:
    problem = dataclasses.replace(SMALL, heads=4, kv_heads=kv_heads)

    def shuffled(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        return right(q.roll(1, dims=1), k, v, problem)

    for fn, status in ((right, "ok"), (shuffled, "error")):
        impl = Implementation("mine", fn, Capabilities(gqa=True))
        assert measure(impl, problem, Direction.BWD, CPU, QUICK).status == status


@pytest.mark.parametrize(
    ("fn", "direction", "reason"),
    [
        (lambda q, k, v, problem: None, Direction.FWD, "the output is None, not a tensor"),
        (lambda q, k, v, problem: q.double(), Direction.FWD, "the output has dtype torch.float64, not torch.float32"),
        (lambda q, k, v, problem: q.detach(), Direction.BWD, "mine returned an output without a gradient function"),
    ],
)
def test_outputs_that_cannot_be_compared(fn: Any, direction: Direction, reason: str) -> None:
    record = measured(fn, direction=direction)
    assert (record.status, record.reason) == ("error", reason)


def test_host_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(source: WallSource, size: int) -> list[float]:
        raise HostBound("the device waits for the host")

    monkeypatch.setattr(WallSource, "batch", late)
    result = measure_alone(as_implementation(right, "mine"), SMALL, Direction.FWD, instruments())
    assert (result.record.status, result.record.reason) == ("host_bound", "the device waits for the host")
    assert (result.record.time_s, result.durations) == (None, ())


def test_a_fall_back_that_is_host_bound_is_told_by_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(source: WallSource, size: int) -> list[float]:
        raise HostBound("the device waits for the host")

    monkeypatch.setattr(WallSource, "batch", late)
    pretender = Implementation("pretender", right, kernels="flash_attention")
    record = measure(pretender, SMALL, Direction.FWD, CPU, QUICK)
    assert record.status == "error"
    assert str(record.reason).startswith("ran aten::")


def test_noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WallSource, "batch", lambda source, size: [1.0, 2.0, 4.0])
    impl = as_implementation(right, "mine")
    # Of three samples all lie in the median's interval: (4 - 1) / 2 / 2.
    at_most = dataclasses.replace(QUICK, noisy_above=0.75)
    assert measure(impl, SMALL, Direction.FWD, CPU, at_most).status == "ok"
    record = measure(impl, SMALL, Direction.FWD, CPU, dataclasses.replace(QUICK, noisy_above=0.74))
    assert (record.status, record.time_s) == ("noisy", None)
    assert "the median, 2 s, is known to ±75 %" in str(record.reason)


def test_noise_hides_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WallSource, "batch", lambda source, size: [1.0, 2.0, 4.0])
    pretender = Implementation("pretender", right, kernels="flash_attention")
    record = measure(pretender, SMALL, Direction.FWD, CPU, dataclasses.replace(QUICK, noisy_above=0.74))
    assert record.status == "error"
    assert str(record.reason).startswith("ran aten::")


def test_unavailable_passes_through() -> None:
    def attention(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        raise Unavailable("no compiler")

    with pytest.raises(Unavailable, match="no compiler"):
        measured(attention)


@pytest.fixture
def clock(host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The clock of the timer and of the check before it."""
    monkeypatch.setattr(check, "time", SimpleNamespace(perf_counter=lambda: host.now))
    return host


def test_compilation_is_the_first_call_less_a_round(clock: Host) -> None:
    seconds = itertools.chain([0.25], itertools.repeat(0.05))

    def attention(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        clock.work(next(seconds))()
        return right(q, k, v, problem)

    record = measured(attention)
    assert record.compile_s == pytest.approx(0.2)
    assert record.time_s is not None
    assert record.time_s.median == pytest.approx(0.05)


def test_a_slow_call_is_no_compilation(clock: Host) -> None:
    def attention(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        clock.work(0.2)()
        return right(q, k, v, problem)

    assert measured(attention).compile_s == pytest.approx(0.0)


def test_one_wrong_gradient_is_enough() -> None:
    def attention(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        copy = v.clone()
        if copy.requires_grad:
            copy.register_hook(lambda gradient: gradient * 1.05)
        return right(q, k, copy, problem)

    assert measured(attention, direction=Direction.FWD).status == "ok"
    assert measured(attention, direction=Direction.BWD).status == "error"


def test_forward_is_timed_without_a_graph_and_backward_alone(clock: Host) -> None:
    seen: list[bool] = []

    def attention(q: torch.Tensor, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        seen.append(torch.is_grad_enabled() and q.requires_grad)
        clock.work(0.1)()
        out = right(q, k, v, problem)
        if out.requires_grad:
            out.register_hook(lambda gradient: clock.work(0.3)())
        return out

    forward = measured(attention)
    assert not any(seen)
    seen.clear()
    backward, both = (measured(attention, direction=d) for d in (Direction.BWD, Direction.FWD_BWD))
    assert all(seen)
    medians = [None if record.time_s is None else record.time_s.median for record in (forward, backward, both)]
    assert medians == pytest.approx([0.1, 0.3, 0.4])


def test_a_warning_is_no_error() -> None:
    def attention(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        warnings.warn("slow path", stacklevel=1)
        return right(q, k, v, problem)

    assert measured(attention).status == "ok"


def test_an_empty_batch_is_measured() -> None:
    record = measured(right, dataclasses.replace(SMALL, batch=0))
    assert (record.status, record.accuracy) == ("ok", None)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("x"),
        MemoryError(),
        RuntimeError("could not allocate 1024 bytes"),
        RuntimeError("aoti_torch_empty failed: CUDA out of memory. Tried to allocate 12.50 GiB. GPU 0 has 1 GiB free."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("RuntimeError: could not allocate 1024 bytes\nException raised from"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cudaMallocAsync failed: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
    ids=str,
)
def test_out_of_memory_is_told_from_other_errors(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_out_of_memory(error)

    def crashed(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", crashed)
    assert not is_out_of_memory(error)  # an allocation that fails after a crash is no lack of memory


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered",
        "an illegal memory access was encountered; CUDA out of memory was handled before",
        "could not allocate shared memory",
        "could not allocate 300 bytes of shared memory",
        "triton: could not allocate 300 bytes of shared memory",
    ],
)
def test_other_errors_are_no_lack_of_memory(text: str) -> None:
    assert not is_out_of_memory(RuntimeError(text))


def test_a_device_without_room_for_a_context_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", full)
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert device_module.lost_device(torch.device("cuda")) is None
