"""Which kernels ran: names and shares, and that each implementation is known by its own and by no other's."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from attn_impls import Direction, Implementation, Problem, discover
from attn_impls.naive import naive
from attn_impls.problem import CAUSAL
from attn_impls.sdpa import sdpa_flash
from pytest_attn.perf import identity
from pytest_attn.perf import measure as measure_module
from pytest_attn.perf.identity import (
    RanAnother,
    check_identity,
    identified_operators,
    kernels_of,
    operators_of,
    shortened,
)
from pytest_attn.perf.kineto import Kernel, Round, Trace
from pytest_attn.perf.measure import measure, measure_alone
from pytest_attn.perf.record import Record, load_run
from tests.tool.quick import CPU, QUICK, instruments

SMALL = Problem(1, 2, 2, 64, 64, 32, "fp32", CAUSAL)
IMPLEMENTATIONS = discover().implementations

# As CUPTI demangles them, cut where the template arguments go on.
UNFUSED = (
    "void (anonymous namespace)::softmax_warp_forward<c10::Half, c10::Half, float, 10, false, false>(c10::Half*, ...",
    "void at::native::(anonymous namespace)::cunn_SoftMaxForward<8, float, float, float, ...",
    "void at::native::(anonymous namespace)::cunn_SoftMaxForwardReg<c10::BFloat16, float, c10::BFloat16, ...",
    "void (anonymous namespace)::softmax_warp_backward<c10::Half, c10::Half, float, 10, false, false>(c10::Half*, ...",
)
FAMILIES = {
    "naive": UNFUSED,
    "sdpa-math": UNFUSED,
    "sdpa-flash": (
        "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, false, false, cutlass::half_t",
        "void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64, 128, 4, false, false, ...",
        "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<64, 64, 128, 8, ...",
    ),
    "sdpa-efficient": (
        "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t, ...",
        "fmha_cutlassF_f32_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel<float, cutlass::arch::Sm80",
        "fmha_cutlassB_f16_aligned_128x128_k64_dropout_sm80(PyTorchMemEffAttention::AttentionBackwardKernel<...",
    ),
    "sdpa-cudnn": (
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64_4x1x1_cga1x1x1_kernel0_0",
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_28_64x64x64_4x1x1_cga1x1x1_kernel0_0",
    ),
    "flash-attn": (
        "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, false, false, cutlass::half_t, ...",
        "void flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<64, 64, 256, 4, false, false, ...",
        "void flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<64, 128, 128, ...",
    ),
    "flex": ("triton_tem_fused_flex_attention_0", "triton_tem_fused_flex_attention_backward_1"),
    "triton": ("attn_triton_forward", "attn_triton_backward_kv", "attn_triton_backward_q"),
    **{
        f"tiled-{rung}": (
            f"void attn::(anonymous namespace)::{rung}_forward_kernel<__half>(attn::ForwardParams<__half>)",
        )
        for rung in ("global", "smem", "pad", "coalesced", "unroll", "regs")
    },
    "tiled-mma": ("void attn::(anonymous namespace)::mma_forward_kernel<__half, 64>(attn::ForwardParams<__half>)",),
    **{
        f"tiled-{rung}": (
            f"void attn::(anonymous namespace)::{rung}_forward_kernel<__nv_bfloat16, attn::{tiles}<64> >(attn::...",
        )
        for rung, tiles in (("wgmma", "WgmmaForward"), ("overlap", "OverlapForward"))
    },
    "tiled-ws": (
        "void attn::(anonymous namespace)::ws_forward_kernel<__nv_bfloat16, attn::WsForward<64> >(attn::...",
        "void attn::ws_backward_prepare_kernel<__nv_bfloat16>(attn::BackwardParams<__nv_bfloat16>)",
        "void attn::ws_backward_keys_kernel<__nv_bfloat16, attn::WsBackward<64> >(attn::HopperBackwardParams)",
    ),
    "flash-attn-4": ("kernel_cutlass_kernel_flash_attncuteflash_fwd_sm90FlashAttentionForwardSm90_object_at_...",),
    "tiled-hopper": (
        "void attn::(anonymous namespace)::hopper_forward_kernel<__nv_bfloat16, attn::PersistentTiles<64, 4, ...",
    ),
    "tiled-async": (
        "void attn::async_forward_kernel<__nv_bfloat16, attn::AsyncForward<64> >(attn::ForwardParams<__nv_bfloat16>)",
        "void attn::async_backward_prepare_kernel<__nv_bfloat16>(attn::BackwardParams<__nv_bfloat16>)",
        "void attn::async_backward_keys_kernel<__nv_bfloat16, attn::AsyncBackward<64>, 7>(attn::BackwardParams<...",
    ),
}
CLAIMS = sorted(FAMILIES)
# The backward kernels of others that an implementation says it uses: tiled-async's for heads wider than 128.
BORROWED = {
    "tiled-ws": "async_backward",
    "tiled-overlap": "ws_backward|async_backward",
    "tiled-hopper": "ws_backward|async_backward",
}
# What runs beside each of them, and proves nothing.
BESIDES = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<int>, std::array<char*, 1ul> >(int, ...",
    "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_tn",
    "Memcpy DtoD (Device -> Device)",
)


MINE = Implementation("mine", lambda q, k, v, problem: q, kernels="mine")


def shared(shares: dict[str, float]) -> list[dict[str, object]]:
    order = sorted(shares, key=lambda name: -shares[name])
    return [{"name": name, "share": shares[name], "count": 1} for name in order]


def ran(*names: str) -> list[dict[str, object]]:
    return [{"name": name, "share": 1 / len(names), "count": 1} for name in names]


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("family", CLAIMS)
def test_a_declared_pattern_knows_its_own_kernels_and_no_others(claim: str, family: str) -> None:
    pattern = IMPLEMENTATIONS[claim].kernels
    found = [bool(re.search(pattern, name)) for name in FAMILIES[family]]
    own = FAMILIES[claim] == FAMILIES[family]
    borrowed = BORROWED.get(claim, "(?!)")
    assert found == [own or re.search(borrowed, name) is not None for name in FAMILIES[family]]


@pytest.mark.parametrize("name", [name for name, impl in IMPLEMENTATIONS.items() if impl.kernels])
def test_what_runs_beside_proves_nothing(name: str) -> None:
    with pytest.raises(RanAnother):
        check_identity(ran(*BESIDES), IMPLEMENTATIONS[name])


@functools.lru_cache
def stored() -> list[Record]:
    runs = [load_run(path) for path in sorted((Path(__file__).parents[2] / "reports" / "h100").glob("*.json"))]
    return [record for run in runs for record in run.records if record.kernels and record.impl in IMPLEMENTATIONS]


def test_what_an_h100_ran_is_what_each_implementation_declares() -> None:
    records = stored()
    assert len(records) > 600
    for record in records:
        check_identity(record.kernels or (), IMPLEMENTATIONS[record.impl])


def test_what_an_h100_ran_for_one_is_no_others() -> None:
    for record in stored():
        for claim in CLAIMS:
            # Two may say of the same kernels that they use them.
            patterns = [BORROWED.get(claim), BORROWED.get(record.impl) and IMPLEMENTATIONS[claim].kernels]
            common = any(re.search(each, x["name"]) for each in patterns if each for x in record.kernels)
            if FAMILIES[claim] != FAMILIES[record.impl] and not common:
                with pytest.raises(RanAnother):
                    check_identity(record.kernels or (), IMPLEMENTATIONS[claim])


def test_a_token_call_of_the_declared_kernel_does_not_stand_for_it() -> None:
    kernels = shared({FAMILIES["sdpa-flash"][0]: 0.04, UNFUSED[0]: 0.3, "ampere_bf16_s16816gemm_bf16_128x64": 0.66})
    with pytest.raises(RanAnother, match=r"^ran ampere_bf16_s16816gemm"):
        check_identity(kernels, sdpa_flash)
    check_identity(kernels, naive)


def test_the_declared_kernels_hold_half_of_the_work_together() -> None:
    half = {"mine_prepare": 0.2, "mine_main": 0.3, "other": 0.5}
    check_identity(shared(half), MINE)
    with pytest.raises(RanAnother, match=r"^ran other$"):
        check_identity(shared(half | {"mine_main": 0.29, "other": 0.51}), MINE)
    check_identity(shared(half | {"mine_main": 0.2, "other": 0.6}), dataclasses.replace(MINE, kernels_share=0.4))


def test_padding_and_copies_take_nothing_from_the_declared_kernels() -> None:
    padded = {"Memcpy DtoD (Device -> Device)": 0.3, BESIDES[0]: 0.4, "mine_main": 0.3}
    check_identity(shared(padded), MINE)
    with pytest.raises(RanAnother, match=r"^ran Memcpy"):
        check_identity(shared({"Memcpy DtoD (Device -> Device)": 1.0}), MINE)


def test_an_operator_that_was_interrupted_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([{"mine": 0.1, "aten::mul": 0.9}] * 2 + [{"mine": 0.9, "aten::mul": 0.1}])
    monkeypatch.setattr(identity, "operators_of", lambda call: shared(next(looks)))
    assert identified_operators(lambda: lambda: None, MINE) == shared({"mine": 0.9, "aten::mul": 0.1})
    looks = iter([{"mine": 0.1, "aten::mul": 0.9}] * 3)
    with pytest.raises(RanAnother, match=r"^ran aten::mul$"):
        identified_operators(lambda: lambda: None, MINE)


def test_only_plain_torch_declares_no_kernels() -> None:
    assert [name for name, impl in IMPLEMENTATIONS.items() if not impl.kernels] == ["tiled-torch"]


def test_a_declared_kernel_may_stand_anywhere() -> None:
    check_identity(ran("aten::copy_", "mine"), MINE)


def test_another_kernel_is_named() -> None:
    with pytest.raises(RanAnother, match=r"^ran softmax_warp_forward$"):
        check_identity(ran("softmax_warp_forward", "gemm"), MINE)


def test_no_claim_fits_anything_and_no_kernel_fits_no_claim() -> None:
    check_identity(ran("anything"), dataclasses.replace(MINE, kernels=""))
    with pytest.raises(RanAnother, match=r"^ran no kernel at all$"):
        check_identity([], MINE)


def test_shares_are_of_the_summed_time_and_counts_of_one_call() -> None:
    call = Trace((Kernel("small", 0.0, 1e-6), Kernel("large", 1e-6, 8e-6), Kernel("small", 9e-6, 1e-6)))
    assert kernels_of([call, call]) == [
        {"name": "large", "share": 0.8, "count": 1},
        {"name": "small", "share": 0.2, "count": 2},
    ]
    assert kernels_of([Trace(())]) == []


def test_a_record_keeps_what_matters_of_long_names() -> None:
    kernels = [
        {"name": "k" * 500, "share": 0.9995, "count": 1},
        {"name": "tiny", "share": 0.0005, "count": 1},
    ]
    (kept,) = shortened(kernels)
    assert kept == {"name": "k" * 159 + "…", "share": 0.9995, "count": 1}
    assert shortened([{"name": "instant", "share": 0.0, "count": 1}]) != ()


def test_operators_of_a_call() -> None:
    q, k, v = (torch.ones(1, 2, 64, 32) for _ in range(3))
    operators = operators_of(lambda: naive(q, k, v, SMALL))
    counts = {operator["name"]: operator["count"] for operator in operators}
    assert counts["aten::bmm"] == 2
    assert counts["aten::_softmax"] == 1
    assert [o["share"] for o in operators] == sorted((o["share"] for o in operators), reverse=True)
    assert sum(o["share"] for o in operators) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", [n for n, i in IMPLEMENTATIONS.items() if i.why_unavailable("cpu") is None])
@pytest.mark.parametrize("direction", Direction)
def test_each_runs_its_own_operators_on_the_cpu(name: str, direction: Direction) -> None:
    record = measure(IMPLEMENTATIONS[name], SMALL, direction, CPU, QUICK)
    assert (record.status, record.reason) == ("ok", None)
    assert record.kernels


@pytest.mark.parametrize("direction", Direction)
def test_a_fall_back_is_an_error_that_names_what_ran(direction: Direction) -> None:
    pretender = Implementation("pretender", naive.fn, naive.capabilities, kernels=sdpa_flash.kernels)
    record = measure(pretender, SMALL, direction, CPU, QUICK)
    assert record.status == "error"
    assert re.fullmatch(r"ran \S+(: \S+)?", str(record.reason))
    assert (record.time_s, record.memory) == (None, None)


def test_a_backward_pass_that_fell_back_is_found_behind_a_forward_that_did_not() -> None:
    class Forward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(q, k, v)
            for _ in range(20):  # so that the forward has most of the time
                out: torch.Tensor = sdpa_flash.fn(q, k, v, problem)
            return out

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> Any:
            with torch.enable_grad():
                leaves = [saved.detach().requires_grad_() for saved in ctx.saved_tensors]
                return torch.autograd.grad(naive(*leaves, problem), leaves, grads[0])

    problem = Problem(1, 2, 2, 256, 256, 64, "fp32", CAUSAL)
    impl = dataclasses.replace(sdpa_flash, name="half", fn=lambda q, k, v, problem: Forward.apply(q, k, v))
    for direction, status in ((Direction.FWD, "ok"), (Direction.BWD, "error"), (Direction.FWD_BWD, "error")):
        record = measure(impl, problem, direction, CPU, QUICK)
        assert record.status == status, (direction, record.reason)
        assert status == "ok" or str(record.reason).startswith("ran aten::")


@pytest.mark.parametrize(("fell_back", "reason"), [(None, None), (0, "ran gemm"), (1, "ran gemm"), (2, "ran gemm")])
def test_on_a_device_each_half_is_traced_by_itself(
    fell_back: int | None, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def traced(rounds: Sequence[Round], flush: Any, warm_s: float) -> list[Trace]:
        assert warm_s == 0.005, "the device idled while the host worked"
        for each in rounds:
            each.prepare()()
        seen.extend(each.prepares_on_device for each in rounds)
        names = ["gemm" if min(index, 2) == fell_back else "mine" for index in range(len(rounds))]
        return [Trace((Kernel(name, 0.0, 1e-6),)) for name in names]

    on_device = instruments()
    on_device.flush = cast(Any, lambda: None)
    monkeypatch.setattr(measure_module, "trace", traced)
    monkeypatch.setattr(measure_module, "disagreement", lambda seconds, traces, **_: None)
    impl = dataclasses.replace(sdpa_flash, kernels="mine")
    record = measure_alone(impl, SMALL, Direction.FWD_BWD, on_device).record
    assert (record.status, record.reason) == ("ok" if reason is None else "error", reason)
    assert seen[:3] == [False, True, False], "only a backward pass has kernels in its preparation"


@pytest.mark.parametrize(("seconds", "warm_s"), [(0.0, 0.005), (0.021, 0.0)])
def test_a_long_call_needs_none_before_it_for_the_device_to_work(
    seconds: float, warm_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def traced(rounds: Sequence[Round], flush: Any, warm_s: float) -> list[Trace]:
        asked.append(warm_s)
        return [Trace((Kernel("mine", 0.0, 1e-6),)) for _ in rounds]

    def slow(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        time.sleep(seconds)
        out: torch.Tensor = sdpa_flash(q, k, v, problem)
        return out

    on_device = instruments()
    on_device.flush = cast(Any, lambda: None)
    monkeypatch.setattr(measure_module, "trace", traced)
    monkeypatch.setattr(measure_module, "disagreement", lambda seconds, traces, **_: None)
    impl = dataclasses.replace(sdpa_flash, fn=slow, kernels="mine")
    assert measure_alone(impl, SMALL, Direction.FWD, on_device).record.status == "ok"
    assert asked == [warm_s]


def test_a_silent_fall_back_inside_torch_is_caught() -> None:
    def falls_back(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        out: torch.Tensor = IMPLEMENTATIONS["sdpa-math"](q, k, v, problem)
        return out

    impl = dataclasses.replace(sdpa_flash, name="falls-back", fn=falls_back)
    record = measure(impl, SMALL, Direction.FWD, CPU, QUICK)
    assert record.status == "error"
    assert str(record.reason).startswith("ran aten::")
