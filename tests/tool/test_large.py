"""Problems too large to judge whole: what becomes of a wrong one, a lack of memory, a crash, a warning."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
import torch

from attn_impls import Unavailable, as_implementation
from attn_impls.naive import naive
from attn_impls.problem import CAUSAL, Direction, Problem
from pytest_attn.correctness import large
from pytest_attn.correctness.case import Case
from pytest_attn.correctness.judge import Verdict
from pytest_attn.correctness.large import judge_last
from pytest_attn.correctness.running import NotDifferentiable
from pytest_attn.frames import ErrorAsText
from pytest_attn.out_of_memory import NoRoom
from tests.tool.nested import lay_out_files, repeat_commands, run, said
from tests.tool.nested import torch_is_whole as torch_is_whole

pytest_plugins = ["pytester"]

CPU = torch.device("cpu")
PROBLEM = Problem(3, 4, 2, 33, 40, 16, "bf16", CAUSAL)


def judged(attention: Callable[..., torch.Tensor], direction: Direction = Direction.FWD) -> Verdict:
    return judge_last(as_implementation(attention, "mine"), Case(PROBLEM), direction, CPU)


@pytest.mark.parametrize("direction", [Direction.FWD, Direction.BWD])
def test_the_last_key_head_stands_for_a_large_problem(direction: Direction) -> None:
    assert judge_last(naive, Case(PROBLEM), direction, CPU).ok

    def spoil(batch: int) -> Verdict:
        def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
            keep = torch.ones(q.shape[0], 1, 1, 1)
            keep[batch] = 0
            out: torch.Tensor = naive(q, k, v, problem) * keep.to(q.dtype)
            return out

        return judged(attention, direction)

    assert spoil(0).ok
    assert not spoil(2).ok


Held = list[weakref.ref[torch.Tensor]]


def raise_alone(error: Exception) -> NoReturn:
    raise error


def raise_holding(held: Held, error: Exception) -> NoReturn:
    matrix = torch.zeros(3)
    held.append(weakref.ref(matrix))
    raise error


def raise_from(held: Held, error: Exception) -> NoReturn:
    try:
        raise_holding(held, KeyError("first"))
    except KeyError as first:
        raise error from first


def raise_within(held: Held, error: Exception) -> NoReturn:
    try:
        raise_holding(held, KeyError("first"))
    except KeyError:
        raise error  # noqa: B904


def raise_over_closure(held: Held, error: Exception) -> NoReturn:
    matrix = torch.zeros(3)
    held.append(weakref.ref(matrix))

    def inner() -> NoReturn:
        matrix.sum()
        raise error

    inner()


def raise_what_was_returned(held: Held, error: Exception) -> NoReturn:
    """As who tries several variants does, and then raises the first's error."""

    def variant() -> Exception:
        try:
            raise_alone(error)
        except type(error) as found:
            return found

    def holding() -> Exception:
        matrix = torch.zeros(3)
        held.append(weakref.ref(matrix))
        return variant()

    raise holding()


def raise_in_group(held: Held, error: Exception) -> NoReturn:
    caught: list[Exception] = []
    try:
        raise_holding(held, error)
    except type(error) as first:
        caught.append(first)
    raise ExceptionGroup("several", caught)


RAISES = pytest.mark.parametrize(
    "how", [raise_holding, raise_from, raise_within, raise_over_closure, raise_what_was_returned, raise_in_group]
)


@pytest.fixture
def held() -> Iterator[Held]:
    """References to tensors that must be gone, though nobody collects garbage: CUDA's allocator does not."""
    gc.disable()
    yield []
    gc.enable()


def failing(held: Held, fail: Callable[[], None]) -> Callable[..., torch.Tensor]:
    def inner(scores: torch.Tensor) -> None:
        held.append(weakref.ref(scores))
        fail()

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        held.append(weakref.ref(q))
        inner(q @ k.new_ones(k.shape[-1], 3))
        return q

    return attention


@RAISES
def test_what_is_raised_is_a_verdict_that_holds_no_memory(held: Held, how: Callable[[Held, Exception], None]) -> None:
    found = judged(failing(held, lambda: how(held, ValueError("kernel exploded"))))
    assert found.broken is not None
    assert found.broken.startswith("raised ")
    assert isinstance(found.raised, ErrorAsText)
    assert "in attention" in found.raised.frames
    assert [ref() for ref in held] == [None, None, None]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.50 GiB. GPU 0 has 1 GiB free."),
        torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory."),
        MemoryError("no room"),
        RuntimeError("could not allocate 268435456 bytes"),
    ],
    ids=str,
)
def test_a_lack_of_memory_is_no_verdict(held: Held, error: Exception) -> None:
    with pytest.raises(NoRoom) as raised:
        judged(failing(held, lambda: raise_alone(error)))
    assert str(raised.value) == f"{type(error).__name__}: {error}"
    assert [ref() for ref in held] == [None, None]


@pytest.mark.parametrize("name", ["make_tensors", "judge_results"])
def test_nor_is_that_of_the_inputs_or_the_oracle(held: Held, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.50 GiB. GPU 0 has 1 GiB free.")

    def full(*_: object, **__: object) -> None:
        raise_holding(held, error)

    monkeypatch.setattr(large, name, full)
    with pytest.raises(NoRoom, match=r"^OutOfMemoryError: CUDA out of memory. .* GPU 0 has 1 GiB free.$"):
        judge_last(naive, Case(PROBLEM), Direction.FWD, CPU)
    assert [ref() for ref in held] == [None]


def test_another_error_of_the_oracle_is_not_the_implementations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "judge_results", lambda *_: raise_alone(ValueError("a bug of ours")))
    with pytest.raises(ValueError, match=r"^a bug of ours$") as raised:
        judge_last(naive, Case(PROBLEM), Direction.FWD, CPU)
    assert raised.traceback[-1].name == "raise_alone"  # for us to see


def test_a_generator_that_is_only_waiting_goes_on() -> None:
    def pump() -> Iterator[ValueError | None]:
        while True:
            try:
                raise_alone(ValueError("kernel exploded"))
            except ValueError as error:
                caught = error
            yield caught

    errors = pump()

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        error = next(errors)
        assert error is not None
        raise error

    assert [judged(attention).broken for _ in range(3)] == ["raised ValueError: kernel exploded"] * 3


def test_what_a_kernel_did_wrong_shows_where_its_implementation_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA tells it at the next call that waits, which must not be one of the oracle's."""
    sentence = "CUDA error: an illegal memory access was encountered"
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: raise_alone(RuntimeError(sentence)))
    large._wait_for(CPU)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        large._wait_for(torch.device("cuda"))
    monkeypatch.setattr(large, "_wait_for", lambda device: raise_alone(RuntimeError(sentence)))
    assert judge_last(naive, Case(PROBLEM), Direction.FWD, CPU).broken == f"raised RuntimeError: {sentence}"


def test_what_cannot_run_at_all_passes_through() -> None:
    with pytest.raises(Unavailable, match=r"^no compiler$"):
        judged(lambda *_: raise_alone(Unavailable("no compiler")))  # type: ignore[arg-type, return-value]
    with pytest.raises(NotDifferentiable):
        judged(lambda q, k, v, problem: naive(q, k, v, problem).detach(), Direction.BWD)


def test_a_warning_is_not_a_wrong_result() -> None:
    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        warnings.warn("slow here", stacklevel=2)
        out: torch.Tensor = naive(q, k, v, problem)
        return out

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert judged(attention).ok


# As the suite's, of a size that any machine holds.
LAST = """
import pytest
from attn_impls import Direction, Problem
from pytest_attn.correctness.case import Case

@pytest.mark.correctness
@pytest.mark.parametrize("direction", [Direction.FWD, Direction.BWD])
def test_last(attn_impl, attn_last_check, direction):
    attn_last_check(Case(Problem(3, 4, 4, 33, 40, 16, "fp32")), direction)
"""
MORE = """
import os
from mykernels import right

def last_batch(q, k, v):
    return right(q, k, v) * (1 - (q.new_tensor(range(len(q))) == len(q) - 1).float()).reshape(-1, 1, 1, 1)

def no_gradient(q, k, v):
    return right(q, k, v).detach()

def no_room(q, k, v):
    raise RuntimeError("could not allocate 268435456 bytes")

def crash(q, k, v):
    os.abort()

rounds = []

def no_room_at_first(q, k, v):
    rounds.append(q.requires_grad)
    if len(rounds) == 2:
        raise MemoryError("no room")
    return right(q, k, v).detach()

def lose(q, k, v):
    open("lost", "w").close()
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
"""


@pytest.fixture
def nested(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    lay_out_files(pytester, monkeypatch, {"test_last.py": LAST, "more.py": MORE})
    return pytester


def outcomes(result: pytest.RunResult) -> dict[str, str]:
    """Return what became of each test, by the names in its id."""
    found = {}
    for line in result.outlines:
        word, _, rest = line.partition(" ")
        if word in ("PASSED", "FAILED", "ERROR"):
            found[rest.partition("[")[2].partition("]")[0]] = word
    return found


@pytest.mark.parametrize("isolate", [[], ["--attn-isolate"]], ids=["here", "isolated"])
def test_a_lack_of_memory_is_skipped_and_all_else_that_goes_wrong_fails(
    nested: pytest.Pytester, isolate: list[str]
) -> None:
    names = ["mykernels:plain", "mykernels:full_card", "more:no_room", "mykernels:raising", "more:last_batch"]
    crash = ["more:crash"] if isolate else []
    options = ["--attn-device=cpu", *isolate, *(f"--attn-impl={name}" for name in (*crash, *names))]
    result = run(nested, "-m", "correctness", "-rA", *options)
    result.assert_outcomes(passed=2, skipped=4, failed=2 * len([*crash, "raising", "last_batch"]))
    wrong = (*crash, "mykernels:raising", "more:last_batch")
    failed = {f"{name}-{direction}": "FAILED" for name in wrong for direction in ("fwd", "bwd")}
    assert outcomes(result) == failed | {f"mykernels:plain-{direction}": "PASSED" for direction in ("fwd", "bwd")}
    result.stdout.re_match_lines_random([rf"{name}( +\S+){{5}} +2  .+" for name in wrong])  # rows of the summary
    text = said(result)
    assert "out of memory: " in text
    assert "could not allocate 268435456 bytes" in text
    assert "  raised RuntimeError: kernel exploded" in text
    assert "  WRONG out  error/budget " in text
    assert ("  the process ended by signal 6 (SIGABRT)" in text) == bool(crash)

    command = next(command for command in repeat_commands(result) if "more:last_batch" in command)
    assert command[:3] == ["test_last.py::test_last[more:last_batch-fwd]", "-m", "correctness"]
    again = run(nested, *command)
    again.assert_outcomes(failed=1)
    assert [line for line in again.outlines if "WRONG" in line] == [
        line for line in result.outlines if "WRONG" in line
    ][:1]


def test_gradients_of_what_declares_none_are_skipped(nested: pytest.Pytester) -> None:
    result = run(nested, "--attn-device=cpu", "--attn-impl=more:no_gradient", "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    assert "so its gradients are not checked" in said(result)


def test_a_lack_of_memory_does_not_tell_that_there_are_gradients(nested: pytest.Pytester) -> None:
    (nested.path / "test_more.py").write_text(LAST)
    result = run(nested, "--attn-device=cpu", "--attn-impl=more:no_room_at_first", "-rs")
    result.assert_outcomes(passed=2, skipped=2)
    text = said(result)
    assert "out of memory: MemoryError: no room" in text
    assert "so its gradients are not checked" in text


@pytest.mark.parametrize("late", [False, True], ids=["told at once", "told while judging"])
def test_a_lost_device_ends_the_run_where_it_was_lost(
    nested: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    def lost_device(device: object) -> str | None:
        return "illegal address" if (nested.path / "lost").exists() else None

    def judge_results(*_: object) -> None:
        (nested.path / "lost").touch()
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("pytest_attn.perf.device.lost_device", lost_device)
    if late:
        monkeypatch.setattr(large, "judge_results", judge_results)
    name = "mykernels:plain" if late else "more:lose"
    result = run(nested, "--attn-device=cpu", f"--attn-impl={name}", "--attn-impl=mykernels:right")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = said(result)
    assert "the CUDA device is unusable (illegal address) after this:" in text
    assert f"{name} " in text.partition("after this:")[2]
    assert "mykernels:right is wrong" not in text
