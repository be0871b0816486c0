"""A lack of memory in a drawn, a fixed, a property's or a claim's case: no verdict on who happened to run then."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch

from attn_impls import Unavailable, as_implementation
from attn_impls.naive import naive
from attn_impls.problem import CAUSAL, Direction, Problem
from pytest_attn.correctness import judge as judging
from pytest_attn.correctness import properties
from pytest_attn.correctness.case import Case
from pytest_attn.correctness.claims import judge_claim
from pytest_attn.correctness.judge import judge
from pytest_attn.correctness.properties import judge_property
from pytest_attn.out_of_memory import NoRoom
from tests.tool.nested import ROOT, lay_out_files, repeat_commands, run, said
from tests.tool.nested import torch_is_whole as torch_is_whole

pytest_plugins = ["pytester"]

CPU = torch.device("cpu")
CASE = Case(Problem(1, 2, 2, 9, 9, 8, "fp32", CAUSAL))
FULL_CARD = """CUDA out of memory. Tried to allocate 38.00 MiB. GPU 0 has a total capacity of 79.18 GiB of which \
23.56 MiB is free. Process 492 has 518.00 MiB memory in use. Including non-PyTorch memory, this process has 2 GiB."""
COMPILED = "backend='inductor' raised:\nRuntimeError: CUDA driver error: out of memory\n\nSet TORCHDYNAMO_VERBOSE=1"

ASKED: dict[str, Callable[..., object]] = {
    "judge": lambda impl: judge(impl, CASE, Direction.BWD, CPU),
    "property": lambda impl: judge_property(impl, "permuted_keys", CASE, CPU),
    "claim": lambda impl: judge_claim(impl, "traceable", CASE, Direction.FWD, CPU),
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=list(ASKED))
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (torch.OutOfMemoryError(FULL_CARD), f"OutOfMemoryError: {FULL_CARD.partition(' Process')[0]}"),
        (RuntimeError(COMPILED), "RuntimeError: RuntimeError: CUDA driver error: out of memory"),
        (MemoryError(), "MemoryError: without a message"),
        (ExceptionGroup("several", [ValueError("x"), MemoryError()]), "ExceptionGroup: several (2 sub-exceptions)"),
    ],
    ids=["torch", "compiled", "python", "group"],
)
def test_it_is_no_verdict(asked: Callable[..., object], error: Exception, sentence: str) -> None:
    def full(q: object, k: object, v: object, problem: object) -> None:
        raise error

    with pytest.raises(NoRoom) as raised:
        asked(as_implementation(full, "mine"))
    assert str(raised.value) == sentence
    assert raised.value.frames.count("File ") == 1
    assert "in full" in raised.value.frames


@pytest.mark.parametrize("asked", ASKED.values(), ids=list(ASKED))
def test_nor_is_what_was_raised_from_it(asked: Callable[..., object]) -> None:
    def full(q: object, k: object, v: object, problem: object) -> None:
        raise ValueError("the launch failed") from torch.OutOfMemoryError(FULL_CARD)

    with pytest.raises(NoRoom, match=r"^ValueError: the launch failed$"):
        asked(as_implementation(full, "mine"))


def test_an_error_that_is_raised_from_itself_is_a_verdict() -> None:
    def circular(q: object, k: object, v: object, problem: object) -> None:
        error = ValueError("no kernel")
        raise error from error

    assert judge(as_implementation(circular, "mine"), CASE, Direction.FWD, CPU).broken == "raised ValueError: no kernel"


@pytest.mark.parametrize("asked", ASKED.values(), ids=list(ASKED))
def test_what_cannot_run_passes_through_whatever_it_says(asked: Callable[..., object]) -> None:
    def unbuilt(q: object, k: object, v: object, problem: object) -> None:
        raise Unavailable("the build failed:\nnvcc: cudaMalloc failed: out of memory")

    with pytest.raises(Unavailable, match="the build failed"):
        asked(as_implementation(unbuilt, "mine"))


def test_nor_is_that_of_a_compiler() -> None:
    def full(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: object) -> torch.Tensor:
        if torch.compiler.is_compiling():
            raise torch.OutOfMemoryError(FULL_CARD)
        return naive(q, k, v, CASE.problem)

    with pytest.raises(NoRoom):
        judge_claim(as_implementation(full, "mine"), "traceable", CASE, Direction.FWD, CPU)


@pytest.mark.parametrize("module", [judging, properties], ids=["judge", "property"])
def test_nor_is_that_of_the_oracle(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError(FULL_CARD)

    monkeypatch.setattr(module, "judge_results" if module is judging else "_worst", full)
    with pytest.raises(NoRoom, match=r"which 23.56 MiB is free\.$"):
        ASKED["judge" if module is judging else "property"](naive)


KERNELS = """
import torch
from attn_impls import Capabilities
from mykernels import right

calls = []

def neighbour(q, k, v, causal=False):
    "As where another process fills the card for a moment."
    calls.append(None)
    if len(calls) == 6:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
    return right(q, k, v, causal)

def wrong_too(q, k, v, causal=False):
    "The memory runs out while hypothesis looks for a smaller case."
    out = right(q, k, v, causal)
    if q.shape[2] <= 20:
        return out
    calls.append(None)
    if len(calls) == 5:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
    return 1.5 * out

def full(q, k, v, problem):
    raise RuntimeError("CUDA driver error: out of memory")

full.capabilities = Capabilities(traceable=True, backward=False)
"""


@pytest.fixture
def nested(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    lay_out_files(pytester, monkeypatch, {"card.py": KERNELS})
    for test in (ROOT / "tests" / "correctness").glob("test_*.py"):
        shutil.copy(test, pytester.path)
    return pytester


@pytest.mark.parametrize("isolate", [[], ["--attn-isolate"]], ids=["here", "isolated"])
@pytest.mark.parametrize("kind", ["test_forward", "permuted_keys"])
def test_the_first_is_told_and_nobody_called_wrong(nested: pytest.Pytester, isolate: list[str], kind: str) -> None:
    options = ("-m", "correctness", "--attn-device=cpu", *isolate)
    result = run(nested, *options, "--attn-impl=card:neighbour", "-k", f"{kind} or test_gradients")
    result.assert_outcomes(failed=1, passed=1)
    text = said(result)
    assert text.count("\nno verdict on card:neighbour: out of memory on b") == 1
    assert "  OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 MiB." in text
    assert "in neighbour" in text
    assert "is wrong on" not in text
    assert "laky" not in text
    (command,) = repeat_commands(result)
    run(nested, *command).assert_outcomes(passed=1)


def test_what_was_found_wrong_before_is_what_is_told(nested: pytest.Pytester) -> None:
    options = ("-m", "correctness", "--attn-device=cpu", "--attn-impl=card:wrong_too", "-k", "test_forward")
    result = run(nested, *options, "--hypothesis-profile=ci")
    result.assert_outcomes(failed=1)
    text = said(result)
    assert text.count("\ncard:wrong_too is wrong on b") == 1
    assert "no verdict" not in text
    assert "laky" not in text
    (command,) = repeat_commands(result)
    run(nested, *command).assert_outcomes(failed=1)


SUBCASES = """
from attn_impls import Direction, Problem
from pytest_attn.correctness.case import Case

def test_all(attn_impl, attn_check, subtests):
    for q_len in (4, 5):
        with subtests.test(q_len=q_len):
            attn_check(Case(Problem(1, 2, 2, q_len, q_len, 8, "fp32")), Direction.FWD)
"""


def test_a_test_that_goes_on_by_itself_is_asked_again(nested: pytest.Pytester) -> None:
    (nested.path / "test_sub.py").write_text(SUBCASES)
    (nested.path / "four.py").write_text(
        "from mykernels import right\n\ndef on_five(q, k, v, causal=False):\n"
        "    if q.shape[2] == 4:\n        raise MemoryError\n    return right(q, k, v, causal)\n"
    )
    result = run(nested, "test_sub.py", "--attn-device=cpu", "--attn-impl=four:on_five", "-rA")
    text = said(result)
    assert "no verdict on four:on_five: out of memory on b1-h2-kv2-q4-k4-d8-fp32-full" in text
    assert "SUBFAILED(q_len=4)" in text
    assert "SUBFAILED(q_len=5)" not in text


@pytest.mark.parametrize("isolate", [[], ["--attn-isolate"]], ids=["here", "isolated"])
def test_each_kind_of_test_tells_it(nested: pytest.Pytester, isolate: list[str]) -> None:
    kinds = "test_forward or test_fixed or permuted_keys or (traceable and fwd)"
    result = run(nested, "-m", "correctness", "--attn-device=cpu", *isolate, "--attn-impl=card:full", "-k", kinds)
    assert result.parseoutcomes()["failed"] == 4
    assert "passed" not in result.parseoutcomes()
    text = said(result)
    assert text.count("\nno verdict on card:full: out of memory on b") == 4
    assert "is wrong on" not in text
    assert "does not keep" not in text
    assert "and is not" not in text
    assert len(repeat_commands(result)) == 4
