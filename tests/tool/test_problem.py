"""The words of the field: masks counted in closed form, FLOPs and bytes by formula, ids that never change."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attn_impls.problem import CAUSAL, FULL, MASK_KINDS, Direction, Mask, Problem

BASE = Problem(2, 4, 2, 8, 16, 32, "bf16")
SMALL_LENGTHS = list(itertools.product(range(1, 8), repeat=2))
BOUNDS = (None, 0, 1, 2, 5, 9)
MASKS = [
    *(Mask(kind) for kind in MASK_KINDS if kind != "window"),
    *(
        Mask("window", left, right)
        for left, right in itertools.product(BOUNDS, BOUNDS)
        if (left, right) != (None, None)
    ),
]


def sees(mask: Mask, q_len: int, kv_len: int, query: int, key: int) -> bool:
    """The definition in the words of Mask's docstring, one pair at a time."""
    last = query + kv_len - q_len  # the key that stands under the query when the last ones are aligned
    if mask.kind == "causal":
        return key <= last
    if mask.kind == "causal_top_left":
        return key <= query
    if mask.kind == "window":
        return (mask.left is None or key >= last - mask.left) and (mask.right is None or key <= last + mask.right)
    return True


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.id)
def test_mask_against_a_count(mask: Mask) -> None:
    for q_len, kv_len in SMALL_LENGTHS:
        rows = [sum(sees(mask, q_len, kv_len, i, j) for j in range(kv_len)) for i in range(q_len)]
        assert mask.visible(q_len, kv_len) == sum(rows), (mask, q_len, kv_len)
        assert mask.has_empty_rows(q_len, kv_len) == (0 in rows), (mask, q_len, kv_len)


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.id)
def test_diagonals_describe_the_mask(mask: Mask) -> None:
    for q_len, kv_len in SMALL_LENGTHS:
        low, high = mask.diagonals(q_len, kv_len)
        for i, j in itertools.product(range(q_len), range(kv_len)):
            inside = (low is None or j - i >= low) and (high is None or j - i <= high)
            assert inside == sees(mask, q_len, kv_len, i, j), (mask, q_len, kv_len, i, j)


lengths = st.integers(1, 60)
bounds = st.none() | st.integers(0, 80)
masks = st.sampled_from([FULL, CAUSAL, Mask("causal_top_left")]) | st.builds(
    lambda left, right: FULL if left is right is None else Mask("window", left, right), bounds, bounds
)


@settings(deadline=None)
@given(mask=masks, q_len=lengths, kv_len=lengths, batch=st.integers(0, 3), group=st.integers(1, 3))
def test_flops_against_a_counted_mask(mask: Mask, q_len: int, kv_len: int, batch: int, group: int) -> None:
    problem = Problem(batch, 2 * group, 2, q_len, kv_len, 5, "fp32", mask)
    pairs = sum(sees(mask, q_len, kv_len, i, j) for i in range(q_len) for j in range(kv_len))
    assert problem.flops() == 4 * 5 * pairs * batch * 2 * group
    assert problem.dense_flops() == 4 * 5 * q_len * kv_len * batch * 2 * group
    assert problem.flops() == problem.dense_flops() or pairs < q_len * kv_len


def test_dense_flops_scale_with_the_direction_as_useful_ones_do() -> None:
    problem = Problem(16, 32, 8, 1024, 1024, 64, "bf16", CAUSAL)
    assert problem.dense_flops() == 137_438_953_472
    assert problem.dense_flops("bwd") == 2.5 * problem.dense_flops()
    assert problem.dense_flops(Direction.FWD_BWD) == 3.5 * problem.dense_flops()


def test_visible_of_long_lengths_is_exact() -> None:
    n = 1 << 40
    assert CAUSAL.visible(n, n) == n * (n + 1) // 2
    assert Mask("window", 4095, 0).visible(n, n) == n * 4096 - 4095 * 4096 // 2


@pytest.mark.parametrize(
    ("problem", "fwd"),
    [
        (Problem(16, 32, 32, 1024, 1024, 64, "bf16", FULL), 137_438_953_472),
        (Problem(16, 32, 32, 1024, 1024, 64, "bf16", CAUSAL), 68_786_585_600),
        # Grouped heads read fewer keys and do as many products.
        (Problem(16, 32, 8, 1024, 1024, 64, "bf16", FULL), 137_438_953_472),
        # One query of a decode step sees every key, also under a causal mask.
        (Problem(1, 32, 8, 1, 8192, 128, "bf16", CAUSAL), 134_217_728),
        (Problem(0, 32, 8, 16, 16, 128, "bf16", CAUSAL), 0),
    ],
    ids=lambda value: value.id if isinstance(value, Problem) else "",
)
def test_flops(problem: Problem, fwd: int) -> None:
    assert problem.flops() == problem.flops("fwd") == fwd
    assert problem.flops(Direction.BWD) == 2.5 * fwd
    assert problem.flops("fwd_bwd") == 3.5 * fwd


def test_min_bytes() -> None:
    q, kv = 2 * 2 * 4 * 8 * 32, 2 * 2 * 2 * 16 * 32  # bytes * batch * heads * length * head_dim
    assert BASE.min_bytes("fwd") == (q + 2 * kv) + q
    assert BASE.min_bytes("bwd") == (q + 2 * kv + q + q) + (q + 2 * kv)
    assert BASE.min_bytes("fwd_bwd") == (q + 2 * kv + q) + (q + q + 2 * kv)
    assert Problem(1, 1, 1, 1, 1, 1, "fp32").min_bytes() == 16
    with pytest.raises(ValueError, match="sideways"):
        BASE.min_bytes("sideways")


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (Problem(16, 32, 32, 1024, 1024, 64, "bf16", CAUSAL), "b16-h32-kv32-q1024-k1024-d64-bf16-causal"),
        (Problem(1, 8, 2, 1, 8192, 128, "fp16"), "b1-h8-kv2-q1-k8192-d128-fp16-full"),
        (Problem(1, 1, 1, 2, 3, 4, "fp32", Mask("causal_top_left")), "b1-h1-kv1-q2-k3-d4-fp32-causal_top_left"),
        (Problem(1, 1, 1, 2, 3, 4, "fp32", Mask("window", 1023, 0)), "b1-h1-kv1-q2-k3-d4-fp32-window1023_0"),
        (Problem(1, 1, 1, 2, 3, 4, "fp32", Mask("window", None, 7)), "b1-h1-kv1-q2-k3-d4-fp32-windowinf_7"),
        (Problem(1, 1, 1, 2, 3, 4, "fp32", Mask("window", 7)), "b1-h1-kv1-q2-k3-d4-fp32-window7_inf"),
        (
            Problem(1, 1, 1, 2, 3, 4, "fp32", CAUSAL, softcap=20.0, scale=0.0625, layout="bhsd"),
            "b1-h1-kv1-q2-k3-d4-fp32-causal-softcap20-scale0.0625-bhsd",
        ),
    ],
)
def test_id_never_changes(problem: Problem, expected: str) -> None:
    assert problem.id == expected


def test_softmax_scale_and_embedding() -> None:
    assert Problem(1, 4, 4, 2, 2, 64, "fp32").softmax_scale == 0.125
    assert Problem(1, 4, 4, 2, 2, 64, "fp32", scale=0.3).softmax_scale == 0.3
    assert Problem(1, 4, 2, 2, 2, 64, "fp32").embedding == 256


@pytest.mark.parametrize("mask", [FULL, CAUSAL, Mask("causal_top_left"), Mask("window", 3, 0), Mask("window", 3)])
def test_dict_round_trip(mask: Mask) -> None:
    problem = Problem(2, 4, 2, 8, 16, 32, "fp16", mask, softcap=20.0, scale=0.3, layout="bhsd")
    assert Problem.from_dict(json.loads(json.dumps(problem.to_dict()))) == problem


def test_dict_takes_a_mask_by_its_kind_and_defaults() -> None:
    sizes = {"batch": 2, "heads": 4, "kv_heads": 2, "q_len": 8, "kv_len": 16, "head_dim": 32, "dtype": "bf16"}
    assert Problem.from_dict(sizes) == BASE
    assert Problem.from_dict(sizes | {"mask": "causal"}).mask == CAUSAL
    assert Problem.from_dict(sizes | {"mask": {"kind": "window", "left": 2}}).mask == Mask("window", 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 2.5}, "heads=2.5 is not a whole number"),
        ({"heads": "4"}, "heads='4' is not a whole number"),
        ({"batch": True}, "batch=True is not a whole number"),
        ({"batch": -1}, "batch=-1 is too small"),
        *(({name: 0}, f"{name}=0 is too small") for name in ("heads", "kv_heads", "q_len", "kv_len", "head_dim")),
        ({"heads": 3}, "kv_heads=2 does not divide heads=3"),
        ({"dtype": "fp64"}, "dtype 'fp64' is not one of fp32, bf16, fp16"),
        ({"layout": "sbhd"}, "layout 'sbhd' is not one of bshd, bhsd"),
        ({"softcap": 0.0}, "softcap=0.0 is not a positive number"),
        ({"scale": float("inf")}, "scale=inf is not a positive number"),
        ({"scale": -1.0}, "scale=-1.0 is not a positive number"),
        ({"mask": "diagonal"}, "mask kind 'diagonal' is not one of full, causal, causal_top_left, window"),
        ({"mask": {"kind": "causal", "left": 3}}, "mask 'causal' takes no left=3; only 'window' does"),
        ({"mask": {"kind": "full", "right": 0}}, "mask 'full' takes no right=0; only 'window' does"),
        ({"softcap": True}, "softcap=True is not a positive number"),
        ({"scale": "0.5"}, "scale='0.5' is not a positive number"),
        ({"mask": {"kind": "window", "left": -1}}, "window left=-1 is not a whole number from 0"),
        ({"mask": {"kind": "window", "left": 1.5}}, "window left=1.5 is not a whole number from 0"),
        ({"mask": {"kind": "window", "left": 1, "right": -2}}, "window right=-2 is not a whole number from 0"),
        ({"mask": {"kind": "window", "lft": 1}}, "unknown mask keys: lft; allowed: kind, left, right"),
        ({"mask": 3}, "mask 3 is neither a kind nor a table with kind, left and right"),
        ({"mask": {"kind": "window"}}, "a window needs left or right; without either it is 'full'"),
        (
            {"emb": 1, "a": 2},
            "unknown problem keys: a, emb; allowed: batch, dtype, head_dim, heads, kv_heads, kv_len, layout, mask, "
            "q_len, scale, softcap",
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:40],
)
def test_refusals(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        Problem.from_dict(BASE.to_dict() | changes)
    assert str(refused.value) == message


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ValueError, match=r"^not a problem: .*'dtype'"):
        Problem.from_dict({name: value for name, value in BASE.to_dict().items() if name != "dtype"})
