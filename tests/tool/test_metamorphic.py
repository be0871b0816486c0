"""Metamorphic properties: what each one catches, what it says, and the command that repeats it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from attn_impls import Capabilities, Implementation, Problem
from attn_impls.naive import naive
from attn_impls.problem import CAUSAL, FULL, Mask
from pytest_attn.correctness.case import Case
from pytest_attn.correctness.properties import PROPERTIES, PropertyVerdict, judge_property
from tests.tool.faults import FAULTS, RIGHT
from tests.tool.nested import ROOT, lay_out, repeat_commands, run, said
from tests.tool.nested import torch_is_whole as torch_is_whole

pytest_plugins = ["pytester"]

CPU = torch.device("cpu")
PROBLEM = Problem(2, 4, 2, 40, 70, 16, "fp32", CAUSAL)


def verdict(impl: Implementation, name: str, problem: Problem = PROBLEM) -> PropertyVerdict:
    found = judge_property(impl, name, Case(problem, seed=3), CPU)
    assert found is not None
    return found


@pytest.mark.parametrize("name", PROPERTIES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("mask", [FULL, CAUSAL, Mask("causal_top_left"), Mask("window", 9, 2)], ids=lambda m: m.id)
def test_right_implementations_keep_them(name: str, dtype: str, mask: Mask) -> None:
    for lengths in ((40, 70), (70, 40), (1, 1), (1, 33), (33, 1)):
        problem = Problem(1, 2, 2, *lengths, 16, dtype, mask, layout="bhsd")
        for impl in (RIGHT, naive):
            found = verdict(impl, name, problem)
            assert found.ok, found.explain()


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("last tile dropped", "permuted_keys"),
        ("diagonal off by one", "blind_to_the_suffix"),
        ("keys of the first batch element", "independent_batches"),
        ("wrong key head", "independent_heads"),
        ("mask after softmax", "constant_values"),
        ("max not subtracted", "shifted_logits"),
        ("wrong key head", "repeated_heads"),
        ("diagonal off by one", "wide_window"),
        ("fp16 accumulator", "linear_in_values"),
        ("upstream gradient read as if dense", "expanded_upstream"),
    ],
)
def test_each_catches_what_it_is_for(fault: str, name: str) -> None:
    # With a large scale, logits reach where exp overflows.
    problem = PROBLEM if name != "shifted_logits" else replace(PROBLEM, head_dim=64, scale=3.0)
    found = [judge_property(FAULTS[fault], name, Case(problem, "normal", seed), CPU) for seed in range(4)]
    assert any(verdict is not None and not verdict.ok for verdict in found)
    kept = [judge_property(RIGHT, name, Case(problem, "normal", seed), CPU) for seed in range(4)]
    assert all(verdict is not None and verdict.ok for verdict in kept)


def one_by_one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
    """A right kernel with one sum for all keys, in fp32: no tree, no partial sums, divided at the end."""
    logits = q @ k.mT * problem.softmax_scale
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    out, total = torch.zeros_like(q), torch.zeros_like(q[..., :1])
    for key in range(problem.kv_len):
        out += weights[..., key, None] * v[:, :, key, None]
        total += weights[..., key, None]
    return out / total


def test_equal_terms_that_all_round_the_same_way_are_right() -> None:
    case = Case(Problem(1, 1, 1, 511, 511, 16, "fp32", FULL), "tiny", 0)
    verdict = judge_property(replace(RIGHT, name="one-by-one", fn=one_by_one), "constant_values", case, CPU)
    assert verdict is not None
    assert verdict.ok, verdict.explain()


def test_what_it_says() -> None:
    found = verdict(FAULTS["mask after softmax"], "constant_values")
    lines = found.explain().splitlines()
    assert lines[0] == f"mask after softmax does not keep constant_values on {PROBLEM.id}"
    assert lines[1].strip().startswith("Where all values are one vector, that vector comes back")
    assert lines[2] == "  regime normal, seed 3, fwd, on cpu"
    assert " WRONG distance/budget " in lines[3]
    assert " apart of " in lines[3]


def test_a_call_outside_the_capabilities_is_no_verdict() -> None:
    modest = Implementation("modest", naive.fn, Capabilities(rectangular=True))
    assert judge_property(modest, "repeated_heads", Case(PROBLEM), CPU) is None
    assert PROPERTIES["repeated_heads"].never(modest.capabilities) == "has no grouped-query attention"
    assert PROPERTIES["wide_window"].never(modest.capabilities) == "has no window mask"
    assert PROPERTIES["permuted_keys"].never(modest.capabilities) is None


DECLARED = """
from attn_impls import Capabilities
from attn_impls.naive import naive

def one_head(q, k, v, problem):
    return naive.fn(q, k, v, problem)

one_head.capabilities = Capabilities(
    gqa=True, also=lambda problem, device: None if problem.kv_heads == 1 else "takes one key head"
)
"""


def test_a_property_that_can_never_be_asked_is_skipped(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    text = (ROOT / "tests" / "correctness" / "test_properties.py").read_text()
    (pytester.path / "test_properties.py").write_text(text)
    (pytester.path / "declared.py").write_text(DECLARED)
    result = run(pytester, "--attn-impl", "declared:one_head", "-k", "repeated_heads", "-rs")
    result.assert_outcomes(skipped=1, deselected=len(PROPERTIES) + 1)
    result.stdout.fnmatch_lines(["SKIPPED*every case needs a call outside the capabilities"])


KERNELS = """
import torch
from mykernels import right

def first_batch(q, k, v, causal=False):
    return right(q, k[:1].expand_as(k), v[:1].expand_as(v), causal)
"""


def test_a_failure_is_repeated_by_its_command(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    lay_out(pytester, "correctness")
    text = (ROOT / "tests" / "correctness" / "test_properties.py").read_text()
    (pytester.path / "test_properties.py").write_text(text)
    (pytester.path / "wrong.py").write_text(KERNELS)
    failed = run(pytester, "--attn-impl", "wrong:first_batch", "-k", "independent_batches")
    failed.assert_outcomes(failed=1, deselected=len(PROPERTIES) + 1)
    (arguments,) = repeat_commands(failed)
    repro = json.loads(arguments[arguments.index("--attn-repro") + 1])
    assert repro["property"] == "independent_batches"
    again = run(pytester, *arguments)
    again.assert_outcomes(failed=1, deselected=len(PROPERTIES) + 1)
    assert repeat_commands(again) == [arguments]
    batch = repro["problem"]["batch"]
    assert batch >= 2
    assert f"wrong:first_batch does not keep independent_batches on b{batch}-" in said(again)
    repro["property"] = "beauty"
    refused = run(pytester, "--attn-repro", json.dumps(repro))
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    assert "--attn-repro: property 'beauty' is not one of permuted_keys, blind_to_the_suffix, " in said(refused)
