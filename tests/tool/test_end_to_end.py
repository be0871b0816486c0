"""Attention from host memory and back, on a CPU: streams and the 2D copy are stood in for, all else is what runs."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import shutil
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch

from attn_impls.implementation import Implementation, Unavailable
from attn_impls.problem import CAUSAL, Direction, Problem
from attn_impls.registry import discover
from pytest_attn.correctness.case import Case, make_tensors
from pytest_attn.perf.copies import COPIES, PITCH, Copies, HostInputs, end_to_end
from pytest_attn.perf.measure import Measured, measure_group
from tests.tool.nested import ROOT, lay_out, run
from tests.tool.quick import CPU, instruments

pytest_plugins = ["pytester"]

NAIVE = discover()["naive"]
PROBLEM = Problem(5, 4, 2, 9, 13, 24, "fp32", CAUSAL)


class Stream:
    """A stream that notes what it waits for, and the calls that were made while it was current."""

    cuda_stream = 0

    def __init__(self, device: torch.device) -> None:
        self.waited: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited.append(other)


@pytest.fixture
def caller(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """The caller's stream, on a machine without CUDA."""
    stream = Stream(CPU)
    current = [stream]

    @contextlib.contextmanager
    def use(other: Stream) -> Iterator[None]:
        current.append(other)
        yield
        current.pop()

    def copy_2d(to: int, to_pitch: int, source: int, pitch: int, width: int, rows: int, *_: object) -> tuple[object]:
        for row in range(rows):
            ctypes.memmove(to + row * to_pitch, source + row * pitch, width)
        return (status,)

    status = SimpleNamespace(name="cudaSuccess")
    runtime = ModuleType("cuda.bindings.runtime")
    vars(runtime).update(
        cudaMemcpy2DAsync=copy_2d,
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice=1),
        cudaError_t=SimpleNamespace(cudaSuccess=status),
    )
    bindings = ModuleType("cuda.bindings")
    vars(bindings)["runtime"] = runtime
    for name, module in (("cuda", ModuleType("cuda")), ("cuda.bindings", bindings), (runtime.__name__, runtime)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", use)
    return stream


@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
@pytest.mark.parametrize("copies", COPIES.values(), ids=COPIES)
def test_result_is_that_of_one_call_on_rows_of_the_pitch(caller: Stream, copies: Copies, layout: str) -> None:
    problem = dataclasses.replace(PROBLEM, layout=layout)
    seen: list[tuple[int, int, object]] = []

    def noting(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, part: Problem) -> torch.Tensor:
        assert part.batch == len(q) == len(k) == len(v)
        stream = torch.cuda.current_stream(CPU)
        for x in (q, k, v):
            assert x.data_ptr() % 4 == 0
            seen.append((part.batch, min(x.stride()[1:3]) * x.element_size(), stream))
        return NAIVE(q, k, v, part)

    x = make_tensors(Case(problem), CPU)
    wrapped = end_to_end(dataclasses.replace(NAIVE, fn=noting), copies, problem, CPU)
    first = wrapped(x.q, x.k, x.v, problem)
    torch.testing.assert_close(first, NAIVE(x.q, x.k, x.v, problem))
    # The buffers are reused, and nothing of the call before is left in them.
    torch.testing.assert_close(wrapped(-x.q, x.k, 2 * x.v, problem), NAIVE(-x.q, x.k, 2 * x.v, problem))
    assert first.data_ptr() == wrapped(x.q, x.k, x.v, problem).data_ptr()

    assert {pitch for _, pitch, _ in seen} == {PITCH if copies.layout == "pitched" else 24 * 4}
    assert [batch for batch, _, _ in seen[::3]][: copies.streams] == ([5] if copies.streams == 1 else [1, 1, 1, 2])
    streams = {stream for _, _, stream in seen}
    if copies.streams == 1:
        assert streams == {caller}
    else:  # each begins after what the caller queued, and the caller goes on after all of them
        assert len(streams) == 4
        assert all(caller in stream.waited for stream in streams)  # type: ignore[attr-defined]
        assert set(caller.waited) == streams


def test_result_in_another_order_is_put_right(caller: Stream) -> None:
    def other_order(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, part: Problem) -> torch.Tensor:
        return NAIVE(q, k, v, part).contiguous()

    x = make_tensors(Case(PROBLEM), CPU)
    wrapped = end_to_end(dataclasses.replace(NAIVE, fn=other_order), Copies("flat", 4), PROBLEM, CPU)
    out = wrapped(x.q, x.k, x.v, PROBLEM)
    assert out.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(out, NAIVE(x.q, x.k, x.v, PROBLEM))


def test_measured_is_a_record_like_others(caller: Stream) -> None:
    wrapped = end_to_end(NAIVE, COPIES["copies-pitched-4stream"], PROBLEM, CPU)
    (outcome,) = measure_group([wrapped], PROBLEM, Direction.FWD, instruments(), HostInputs)
    assert isinstance(outcome, Measured)
    assert outcome.record.status == "ok", outcome.record.reason
    assert outcome.record.key == ("naive+copies-pitched-4stream", PROBLEM.id, "fwd")
    assert outcome.record.accuracy is not None


def test_copy_of_a_stale_result_is_an_error(caller: Stream) -> None:
    wrapped = end_to_end(NAIVE, COPIES["copies-flat-1stream"], PROBLEM, CPU)
    kept: list[torch.Tensor] = []

    def stale(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        kept[:] = kept or [wrapped(q, k, v, problem).clone()]
        return kept[0]

    broken: Implementation = dataclasses.replace(wrapped, fn=stale)
    (outcome,) = measure_group([broken], PROBLEM, Direction.FWD, instruments(), HostInputs)
    assert isinstance(outcome, Measured)
    assert outcome.record.status == "error"
    assert "after the timing, on other inputs" in str(outcome.record.reason)


def test_pitched_without_its_package_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(Unavailable, match="need the package cuda-bindings"):
        end_to_end(NAIVE, COPIES["copies-pitched-1stream"], PROBLEM, CPU)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "times attention from host memory and back; run it with -m copies"),
        (("-m", "copies", "--attn-impl", "naive", "--attn-device", "cpu"), "needs a CUDA device"),
    ],
)
def test_skips_say_why(pytester: pytest.Pytester, arguments: tuple[str, ...], reason: str) -> None:
    lay_out(pytester, "perf")
    shutil.copy(ROOT / "tests" / "perf" / "test_copies.py", pytester.path)
    result = run(pytester, "test_copies.py", "-rs", *arguments)
    assert set(result.parseoutcomes()) == {"skipped"}
    result.stdout.fnmatch_lines([f"SKIPPED*{reason}*"])
