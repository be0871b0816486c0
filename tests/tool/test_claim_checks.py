"""Claims that do not hold, and how the suite says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from attn_impls import Capabilities, HeadDims, Implementation
from attn_impls.naive import naive
from attn_impls.problem import Direction, Problem
from pytest_attn.correctness.claims import claim_case, judge_claim, why_not_checked
from tests.tool.nested import ROOT, lay_out, repeat_commands, run

pytest_plugins = ["pytester"]

CLAIMING = Capabilities(traceable=True, capturable=True)
BREAKING = """
from attn_impls import Capabilities

def breaking(q, k, v, problem):
    print(q.sum().item())
    scores = (q @ k.mT) * problem.softmax_scale
    return scores.softmax(-1) @ v

breaking.capabilities = Capabilities(masks=frozenset({"full"}), traceable=True, backward=False)
"""


def naive_then(change: Callable[[torch.Tensor], torch.Tensor]) -> Implementation:
    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        result: torch.Tensor = naive.fn(q, k, v, problem)
        return change(result)

    return Implementation("mine", attention, CLAIMING)


def problem_of(impl: Implementation, claim: str, device: str = "cpu") -> str | None:
    case = claim_case(impl.capabilities, Direction.FWD, device)
    assert case is not None
    return judge_claim(impl, claim, case, Direction.FWD, torch.device(device)).broken


def test_wrong_strides_on_fake_tensors() -> None:
    impl = naive_then(lambda out: out if isinstance(out, FakeTensor) else out.transpose(1, 2).contiguous().mT.mT)
    assert "has shape" in str(problem_of(impl, "traceable"))
    impl = naive_then(lambda out: out if isinstance(out, FakeTensor) else out.mT.contiguous().mT)
    assert "on fake tensors out has the strides (41216, 10304, 64, 1), on real ones (41216" in str(
        problem_of(impl, "traceable")
    )


def test_a_graph_break() -> None:
    impl = naive_then(lambda out: print("done") or out)
    broken = problem_of(impl, "traceable")
    assert broken is not None
    assert broken.startswith("torch.compile raised Unsupported: ")
    assert "test_claim_checks.py" in broken


def test_other_numbers_when_compiled() -> None:
    impl = naive_then(lambda out: out * 1.01 if torch.compiler.is_compiling() else out)
    broken = problem_of(impl, "traceable")
    assert broken is not None
    assert broken.startswith("compiled, its results are wrong:\n  WRONG out ")


def test_what_keeps_its_claim() -> None:
    assert problem_of(naive_then(torch.clone), "traceable") is None


@pytest.mark.parametrize(
    ("capabilities", "claim", "direction", "device", "reason"),
    [
        (Capabilities(), "traceable", Direction.FWD, "cpu", "does not claim to be traceable"),
        (CLAIMING, "capturable", Direction.FWD, "cpu", "is capturable on a CUDA device only"),
        (CLAIMING, "capturable", Direction.FWD, "cuda", None),
        (Capabilities(traceable=True, backward=False), "traceable", Direction.BWD, "cpu", "has no backward"),
        (
            Capabilities(traceable=True, also=lambda problem, device: "never"),
            "traceable",
            Direction.FWD,
            "cpu",
            "takes none of the problems for this check",
        ),
    ],
)
def test_why_a_claim_is_not_checked(
    capabilities: Capabilities, claim: str, direction: Direction, device: str, reason: str | None
) -> None:
    assert why_not_checked(claim, capabilities, direction, device) == reason


def test_the_case_keeps_to_the_capabilities() -> None:
    narrow = Capabilities(dtypes=frozenset({"fp16"}), head_dims=HeadDims(100, 200, multiple_of=24))
    case = claim_case(narrow, Direction.FWD, "cpu")
    assert case is not None
    assert narrow.why_not(case.problem, Direction.FWD, "cpu") is None


@pytest.mark.parametrize("isolate", [(), ("--attn-isolate",)], ids=["here", "isolated"])
def test_a_failure_says_who_claims_what_and_repeats(pytester: pytest.Pytester, isolate: tuple[str, ...]) -> None:
    lay_out(pytester, "correctness")
    shutil.copy(ROOT / "tests" / "correctness" / "test_claims.py", pytester.path)
    (pytester.path / "mykernels.py").write_text(BREAKING)
    result = run(pytester, "test_claims.py", "--attn-impl", "mykernels:breaking", *isolate)
    result.assert_outcomes(failed=1, skipped=3)
    result.stdout.fnmatch_lines(
        [
            "mykernels:breaking claims to be traceable and is not, on b2-h4-kv4-q160-k160-d64-bf16-full",
            "  regime normal, seed 1, fwd, on cpu",
            "  raised DataDependentOutputException: aten._local_scalar_dense.default",
        ]
    )
    (command,) = repeat_commands(result)
    assert command == ["test_claims.py::test_claim[mykernels:breaking-traceable-fwd]", *command[1:]]
    run(pytester, *command).assert_outcomes(failed=1)


@pytest.mark.gpu
class TestCapture:
    def test_what_keeps_its_claim(self) -> None:
        assert problem_of(naive_then(torch.clone), "capturable", "cuda") is None

    def test_a_wait_for_the_device(self) -> None:
        impl = naive_then(lambda out: out * (out.isfinite().all().item() or 1))
        assert "raised" in str(problem_of(impl, "capturable", "cuda"))

    def test_results_of_the_inputs_at_capture(self) -> None:
        kept: list[torch.Tensor] = []
        impl = naive_then(lambda out: kept.append(out.clone()) or kept[0].clone())
        assert "replayed, its results are wrong" in str(problem_of(impl, "capturable", "cuda"))
