"""What capabilities exclude and why, and when an implementation cannot run here."""

from __future__ import annotations

import dataclasses

import pytest

from attn_impls import Capabilities, HeadDims, Implementation
from attn_impls.problem import CAUSAL, FULL, MASK_KINDS, Direction, Mask, Problem
from attn_impls.sdpa import sdpa_cudnn

SQUARE = Problem(1, 4, 4, 16, 16, 64, "bf16", FULL)
EVERYTHING = Capabilities(
    masks=frozenset(MASK_KINDS), gqa=True, rectangular=True, empty_rows=True, softcap=True, scale=True
)


def change(problem: Problem, **changes: object) -> Problem:
    return dataclasses.replace(problem, **changes)  # type: ignore[arg-type]


WINDOW = change(SQUARE, mask=Mask("window", 3, 0))


@pytest.mark.parametrize(
    ("capabilities", "problem", "direction", "device", "reason"),
    [
        (Capabilities(devices=frozenset({"cuda"})), SQUARE, "fwd", "cpu", "does not run on cpu"),
        (Capabilities(dtypes=frozenset({"fp16"})), SQUARE, "fwd", "cpu", "does not take bf16"),
        (Capabilities(head_dims=HeadDims(1, 32)), SQUARE, "fwd", "cpu", "takes head_dim 1..32, not 64"),
        (Capabilities(head_dims=HeadDims(65, 99)), SQUARE, "fwd", "cpu", "takes head_dim 65..99, not 64"),
        (
            Capabilities(head_dims=HeadDims(8, 256, multiple_of=24)),
            SQUARE,
            "fwd",
            "cpu",
            "takes head_dim 8..256 in multiples of 24, not 64",
        ),
        (Capabilities(), WINDOW, "fwd", "cpu", "has no window mask"),
        (Capabilities(), change(SQUARE, kv_heads=2), "fwd", "cpu", "has no grouped-query attention"),
        (Capabilities(), change(SQUARE, kv_len=32), "fwd", "cpu", "needs q_len == kv_len"),
        (
            Capabilities(rectangular=True),
            change(SQUARE, q_len=17, mask=CAUSAL),
            "fwd",
            "cpu",
            "does not define rows without a visible key",
        ),
        (Capabilities(), change(SQUARE, softcap=20.0), "fwd", "cpu", "has no softcap"),
        (Capabilities(), change(SQUARE, scale=0.125), "fwd", "cpu", "has no custom scale"),
        (Capabilities(backward=False), SQUARE, "bwd", "cpu", "has no backward"),
        (Capabilities(backward=False), SQUARE, "fwd_bwd", "cpu", "has no backward"),
        (Capabilities(also=lambda problem, device: f"{problem.batch} {device}"), SQUARE, "fwd", "cuda", "1 cuda"),
    ],
)
def test_why_not(capabilities: Capabilities, problem: Problem, direction: Direction, device: str, reason: str) -> None:
    assert capabilities.why_not(problem, direction, device) == reason
    generous = dataclasses.replace(EVERYTHING, also=lambda problem, device: None)
    assert generous.why_not(problem, direction, device) is None


def test_cudnn_claims_no_empty_batch() -> None:
    # Its operator gives None for one, in torch 2.11.
    reason = sdpa_cudnn.capabilities.why_not(Problem(0, 2, 2, 33, 33, 64, "fp16", CAUSAL), Direction.FWD, "cuda")
    assert reason == "gives no tensor for an empty batch"


def test_forward_needs_no_backward() -> None:
    assert Capabilities(backward=False).why_not(SQUARE, "fwd", "cpu") is None


def test_why_unavailable() -> None:
    assert Implementation("mine", print).why_unavailable("cpu") is None
    assert Implementation("mine", print, probe=lambda: "no luck").why_unavailable() == "no luck"
    only_cuda = Implementation("mine", print, Capabilities(devices=frozenset({"cuda"})))
    assert only_cuda.why_unavailable("cpu") == "needs cuda"


def test_a_version_that_raises_is_unknown() -> None:
    assert Implementation("mine", print, version=lambda: str(1 / 0)).version_or_unknown() == "unknown"
