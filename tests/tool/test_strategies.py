"""Cases: drawn inside the capabilities and near the edges of tiles, made into the same tensors on every call."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest
import torch
from hypothesis import given, settings

from attn_impls import Capabilities, HeadDims
from attn_impls.problem import CAUSAL, MASK_KINDS, Direction, Mask, Problem
from pytest_attn.correctness import profiles
from pytest_attn.correctness.case import DTYPES, Case, make_tensors
from pytest_attn.correctness.fixed import LARGE, fixed_cases
from pytest_attn.correctness.regimes import REGIMES
from pytest_attn.correctness.storage import STORAGES, placed, storage_of, store
from pytest_attn.correctness.strategies import cases

CPU = torch.device("cpu")
EVERYTHING = Capabilities(
    masks=frozenset(MASK_KINDS), gqa=True, rectangular=True, empty_rows=True, softcap=True, scale=True
)
NARROW = {
    "modest": Capabilities(),
    "full": Capabilities(masks=frozenset({"full"})),
    "windows": Capabilities(masks=frozenset({"window"}), rectangular=True),
    "no empty rows": Capabilities(masks=frozenset(MASK_KINDS), gqa=True, rectangular=True),
    "half": Capabilities(dtypes=frozenset({"fp16"}), head_dims=HeadDims(64, 128, multiple_of=64)),
    "odd head_dim": Capabilities(head_dims=HeadDims(48, 48)),
    "compiled": dataclasses.replace(EVERYTHING, compiles_per_shape=True),
    "finer": Capabilities(also=lambda problem, device: None if problem.q_len % 2 else "needs an odd length"),
}


def drawn(capabilities: Capabilities, count: int = 300, device: str = "cpu") -> list[Case]:
    found: list[Case] = []

    @settings(profiles.PROFILES["ci"], max_examples=count)
    @given(cases(capabilities, device, Direction.BWD))
    def collect(case: Case) -> None:
        found.append(case)

    collect()
    return found


@pytest.fixture(scope="module")
def everything() -> list[Case]:
    return drawn(EVERYTHING, 500)


@pytest.mark.parametrize("capabilities", NARROW.values(), ids=NARROW)
def test_cases_stay_inside_the_capabilities(capabilities: Capabilities) -> None:
    found = drawn(capabilities, 60)
    assert len(found) >= 50
    for case in found:
        assert capabilities.why_not(case.problem, Direction.BWD, "cpu") is None, case.id


def test_every_capability_is_exercised(everything: list[Case]) -> None:
    problems = [case.problem for case in everything]
    assert {p.mask.kind for p in problems} == set(MASK_KINDS)
    assert {p.dtype for p in problems} == {"fp32", "bf16", "fp16"}
    assert {p.layout for p in problems} == {"bshd", "bhsd"}
    assert {p.heads // p.kv_heads for p in problems} == {1, 2, 3, 4, 8}
    assert {p.batch for p in problems} == {1, 2, 3, 5}
    assert {storage_of(case.seed) for case in everything} == set(STORAGES)
    assert {case.regime for case in everything} == set(REGIMES)
    for holds in (
        lambda p: p.q_len < p.kv_len,
        lambda p: p.q_len > p.kv_len,
        lambda p: p.q_len == p.kv_len,
        lambda p: p.softcap is not None,
        lambda p: p.scale is not None,
        lambda p: p.batch > 1,
        lambda p: p.mask.has_empty_rows(p.q_len, p.kv_len),
        lambda p: p.mask.kind == "window" and p.mask.right is None,
        lambda p: p.mask.kind == "window" and p.mask.left is None,
        lambda p: p.head_dim == 128 and min(p.q_len, p.kv_len) >= 128,
        lambda p: p.mask.kind == "window" and p.mask.right,
        lambda p: p.head_dim % 8,
        lambda p: p.head_dim > 128,
        lambda p: p.kv_len > 512 and p.q_len == 1,
        lambda p: p.q_len > 512 > p.kv_len,
        lambda p: p.mask.kind == "window" and p.mask.left and p.mask.left > p.kv_len,
    ):
        assert sum(bool(holds(p)) for p in problems) >= 5
    assert len({case.seed for case in everything}) > 50


def test_lengths_favour_the_edges_of_tiles(everything: list[Case]) -> None:
    lengths = Counter(n for case in everything for n in (case.problem.q_len, case.problem.kv_len))
    edges = {1, *(n + step for n in (16, 32, 64, 80, 96, 112, 128, 176, 192, 256) for step in (-1, 0, 1))}
    assert len(edges & set(lengths)) > 0.9 * len(edges)
    assert sum(lengths[n] for n in edges) > 0.4 * lengths.total()
    assert set(lengths) - edges  # and others


def test_cases_stay_small(everything: list[Case]) -> None:
    assert all(case.problem.flops() <= 2**26 for case in everything)
    assert max(case.problem.q_len * case.problem.kv_len for case in everything) <= 2**18
    assert 2048 < max(case.problem.kv_len for case in everything) <= 5000


def test_cases_on_a_gpu_are_long_but_take_little_memory() -> None:
    problems = [case.problem for case in drawn(EVERYTHING, device="cuda")]
    assert max(min(p.q_len, p.kv_len) for p in problems) > 2048 - 2
    assert all(p.batch * p.heads * p.q_len * p.kv_len <= 2**24 for p in problems)
    assert all(p.batch * p.kv_heads * max(p.q_len, p.kv_len) * p.head_dim <= 2**22 for p in problems)


@pytest.mark.parametrize(("head_dims", "rows"), [((33, 64), 256), ((65, 128), 192), ((129, 256), 128)])
def test_cases_on_a_gpu_have_more_query_tiles_than_it_has_multiprocessors(
    head_dims: tuple[int, int], rows: int
) -> None:
    capabilities = dataclasses.replace(EVERYTHING, head_dims=HeadDims(*head_dims))
    problems = [case.problem for case in drawn(capabilities, device="cuda")]
    assert sum(p.batch * p.heads * -(-p.q_len // rows) > 132 for p in problems) >= 3
    fixed = [case.problem for case in fixed_cases(capabilities, "cuda", Direction.BWD).values()]
    assert {p.mask.kind for p in fixed if p.q_len > rows and p.batch * p.heads * -(-p.q_len // rows) > 132} == {
        "full",
        "causal",
        "window",
    }


def test_a_compiled_backend_sees_few_shapes() -> None:
    problems = {case.problem for case in drawn(NARROW["compiled"], 100)}
    assert 4 <= len(problems) <= 10
    assert {p.dtype for p in problems} == {"fp32", "bf16", "fp16"}
    assert {p.mask.kind for p in problems} == set(MASK_KINDS)


PROBLEM = Problem(2, 4, 2, 8, 16, 32, "bf16", CAUSAL)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_depend_on_the_case_alone(dtype: str, regime: str) -> None:
    case = Case(dataclasses.replace(PROBLEM, dtype=dtype), regime, 5)
    first = make_tensors(case, CPU)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = make_tensors(case, CPU)
    other = make_tensors(dataclasses.replace(case, seed=6), CPU)
    assert torch.equal(state, torch.get_rng_state())
    for name in ("q", "k", "v", "dout"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
        assert not torch.equal(getattr(first, name), getattr(other, name)), name
        assert getattr(first, name).dtype == DTYPES[dtype]
        assert getattr(first, name).isfinite().all()


@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_layout_is_the_order_in_memory(layout: str) -> None:
    tensors = make_tensors(Case(dataclasses.replace(PROBLEM, layout=layout)), CPU)
    strides = {"bshd": {"q": (1024, 32, 128, 1), "k": (1024, 32, 64, 1)}, "bhsd": {"q": (1024, 256, 32, 1)}}
    strides["bhsd"]["k"] = (1024, 512, 32, 1)
    for name, shape, stride in (
        ("q", (2, 4, 8, 32), "q"),
        ("dout", (2, 4, 8, 32), "q"),
        ("k", (2, 2, 16, 32), "k"),
        ("v", (2, 2, 16, 32), "k"),
    ):
        tensor = getattr(tensors, name)
        assert (tuple(tensor.shape), tensor.stride()) == (shape, strides[layout][stride]), name


def test_layout_changes_no_value() -> None:
    one, two = (make_tensors(Case(dataclasses.replace(PROBLEM, layout=layout)), CPU) for layout in ("bshd", "bhsd"))
    assert torch.equal(one.q, two.q)
    assert torch.equal(one.v, two.v)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_at_the_limit_do_not_overflow_float32_sums(dtype: str) -> None:
    tensors = make_tensors(Case(dataclasses.replace(PROBLEM, dtype=dtype, kv_len=4096), "limits"), CPU)
    largest = tensors.v.double().abs().max()
    assert largest * 4096 < torch.finfo(torch.float32).max
    assert largest > torch.finfo(DTYPES[dtype]).max ** 0.8
    assert float((tensors.dout.double() * tensors.v.double()[:, :1, :8]).abs().max()) < 100


@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
@pytest.mark.parametrize("kv_len", [8, 16])
@pytest.mark.parametrize("head_dim", [5, 32])
@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5, 6])
def test_storage_changes_no_value(seed: int, head_dim: int, kv_len: int, layout: str) -> None:
    problem = dataclasses.replace(PROBLEM, head_dim=head_dim, kv_len=kv_len, layout=layout)
    tensors = make_tensors(Case(problem, seed=seed), CPU)
    given_ = (tensors.q, tensors.k, tensors.v, tensors.dout)
    dense = store("dense", layout, *given_)
    for view, tensor in zip(given_, dense, strict=True):
        assert torch.equal(view, tensor)
        assert view.stride(-1) == 1
        assert (view.stride(1) < view.stride(2)) == (layout == "bshd")
        if head_dim % 8 == 0:
            assert view.data_ptr() % 16 == 0
            assert all(stride % 8 == 0 for stride in view.stride()[:3])
    assert any(view.stride() != tensor.stride() for view, tensor in zip(given_, dense, strict=True))


@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_placing_sets_the_stride_of_a_dimension_of_one(layout: str) -> None:
    odd = torch.arange(6.0).as_strided((1, 3, 2, 1), (6, 1, 3, 24))
    assert odd.clone().stride(-1) != 1
    copy = placed(odd, layout)
    assert copy.stride() == ((6, 1, 3, 1) if layout == "bshd" else (6, 2, 1, 1))
    assert torch.equal(copy, odd)


@pytest.mark.parametrize("seed", [1, 2])
def test_what_lies_around_a_view_is_nan(seed: int) -> None:
    tensors = make_tensors(Case(PROBLEM, seed=seed), CPU)
    for view in (tensors.q, tensors.k, tensors.v, tensors.dout):
        whole = torch.empty(0, dtype=view.dtype).set_(view.untyped_storage())
        assert int(whole.isnan().sum()) == whole.numel() - view.numel() > 0


def test_packed_tensors_share_their_storage() -> None:
    square = make_tensors(Case(dataclasses.replace(PROBLEM, q_len=16), seed=3), CPU)
    assert len({t.untyped_storage().data_ptr() for t in (square.q, square.k, square.v)}) == 1
    assert square.q.stride() == (8 * 16 * 32, 32, 8 * 32, 1)  # 4 + 2 + 2 heads side by side
    other = make_tensors(Case(PROBLEM, seed=3), CPU)
    assert other.k.untyped_storage().data_ptr() == other.v.untyped_storage().data_ptr()
    assert other.q.untyped_storage().data_ptr() != other.k.untyped_storage().data_ptr()


def test_the_plain_form_is_the_simplest_seed() -> None:
    assert [storage_of(seed) for seed in (0, 1, 2, 3, 4, 7)] == [
        "dense",
        "cut_out",
        "wide_rows",
        "packed",
        "mixed_1",
        "dense",
    ]


@pytest.mark.parametrize("capabilities", [EVERYTHING, *NARROW.values()], ids=["everything", *NARROW])
def test_fixed_cases_stay_inside_the_capabilities(capabilities: Capabilities) -> None:
    for direction in (Direction.FWD, Direction.BWD):
        for case in fixed_cases(capabilities, "cpu", direction).values():
            assert capabilities.why_not(case.problem, direction, "cpu") is None, case.id


def test_fixed_cases_of_one_that_does_everything() -> None:
    problems = [case.problem for case in fixed_cases(EVERYTHING, "cpu", Direction.BWD).values()]
    assert {p.mask.kind for p in problems} == set(MASK_KINDS)
    assert min(p.batch for p in problems) == 0
    assert max(p.head_dim for p in problems) == 256
    modest = fixed_cases(Capabilities(), "cpu", Direction.FWD).values()
    assert len(modest) >= 7
    assert all(case.problem.heads == case.problem.kv_heads for case in modest)


def test_large_problems_pass_32_bit_offsets() -> None:
    for case in LARGE.values():
        p = case.problem
        assert max(p.heads * p.q_len, p.kv_heads * p.kv_len) * p.batch * p.head_dim > 2**31, case.id


def test_fresh_leaves() -> None:
    tensors = make_tensors(Case(PROBLEM), CPU)
    leaves = tensors.requires_grad()
    assert all(getattr(leaves, name).requires_grad and getattr(leaves, name).is_leaf for name in "qkv")
    assert not any(getattr(tensors, name).requires_grad for name in ("q", "k", "v", "dout"))
    assert not leaves.dout.requires_grad


def test_regimes_do_what_they_say() -> None:
    problem = dataclasses.replace(PROBLEM, dtype="fp32", q_len=16)

    def made(regime: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tensors = make_tensors(Case(problem, regime), CPU)
        return tensors.q, tensors.k, tensors.v

    q, k, v = made("normal")
    assert 0.9 < float(q.std()) < 1.1
    assert made("tiny")[0].abs().max() < 0.01
    large_q, large_k, _ = made("large_logits")
    assert torch.equal(large_q, 4 * q)
    assert torch.equal(large_k, 4 * k)
    outlier = made("outlier_key")[1]
    assert torch.equal(outlier[:, :, -1], 16 * k[:, :, -1])
    assert torch.equal(outlier[:, :, :-1], k[:, :, :-1])
    channel = made("outlier_channel")
    assert torch.equal(channel[1][..., 0], 16 * k[..., 0])
    assert torch.equal(channel[2][..., -1], 16 * v[..., -1])
    constant = made("constant_keys")[1]
    assert torch.equal(constant, k[:, :, :1].expand_as(k))
    cancelling = made("cancellation")[2]
    assert cancelling[:, :, 0::2].mean() > 7
    assert cancelling[:, :, 1::2].mean() < -7
    hot_q, hot_k, _ = made("one_hot")
    for head in range(4):
        assert torch.equal(hot_q[:, head], 3 * hot_k[:, head // 2])
    limit_v = made("limits")[2]
    assert float(limit_v.abs().max()) > 2.0**107
    sizes = made("sorted_keys")[1].square().sum(-1)
    assert (sizes.diff(dim=-1) >= 0).all()
    early = made("early_outlier_key")[1]
    assert torch.equal(early[:, :, 0], 16 * k[:, :, 0])
    assert torch.equal(early[:, :, 1:], k[:, :, 1:])
    assert torch.equal(made("falling_keys")[1], made("sorted_keys")[1].flip(2))


@pytest.mark.parametrize(
    "case",
    [
        Case(PROBLEM),
        Case(PROBLEM, "one_hot", 65535),
        Case(Problem(2, 4, 2, 8, 16, 32, "fp16", Mask("window", 3), 20.0, 0.3, "bhsd"), "tiny", 1),
    ],
    ids=lambda case: case.id,
)
def test_case_round_trip(case: Case) -> None:
    assert Case.from_dict(json.loads(json.dumps(case.to_dict()))) == case


def test_case_in_short() -> None:
    assert Case(PROBLEM, "tiny", 3).to_dict() == {
        "problem": {
            "batch": 2,
            "heads": 4,
            "kv_heads": 2,
            "q_len": 8,
            "kv_len": 16,
            "head_dim": 32,
            "dtype": "bf16",
            "mask": "causal",
        },
        "regime": "tiny",
        "seed": 3,
    }
    assert Case(PROBLEM, "tiny", 3).id == "b2-h4-kv2-q8-k16-d32-bf16-causal/tiny/3"
    assert Case.from_dict({"problem": PROBLEM.to_dict()}) == Case(PROBLEM, "normal", 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "a case needs a problem, and may have regime and seed, not this"),
        ({"problem": 3}, "a case needs a problem, and may have regime and seed, not this"),
        ({"problem": {}, "sed": 3}, "a case needs a problem, and may have regime and seed, not sed"),
        ({"problem": PROBLEM.to_dict(), "regime": "odd"}, f"regime 'odd' is not one of {', '.join(REGIMES)}"),
    ],
)
def test_case_refusals(data: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        Case.from_dict(data)
    assert str(refused.value) == message


def test_profiles() -> None:
    found = profiles.PROFILES
    assert {name: profile.max_examples for name, profile in found.items()} == {"dev": 25, "ci": 100, "nightly": 2000}
    assert all(profile.deadline is None for profile in found.values())
    assert found["ci"].derandomize
    assert not found["nightly"].derandomize
    assert found["nightly"].database is not None
