"""Which kernels ran: names and shares, and that each implementation is known by its own and by no other's."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from attn_impls import Direction, Implementation, Problem, discover
from attn_impls.naive import naive
from attn_impls.problem import CAUSAL
from attn_impls.sdpa import sdpa_flash
from pytest_attn.perf.identity import RanAnother, check_identity, kernels_of, operators_of, shortened
from pytest_attn.perf.kineto import Kernel, Trace
from pytest_attn.perf.measure import measure
from tests.tool.quick import CPU, QUICK

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
    "tiled-async": (
        "void attn::async_forward_kernel<__nv_bfloat16, attn::AsyncForward<64> >(attn::ForwardParams<__nv_bfloat16>)",
        "void attn::async_backward_prepare_kernel<__nv_bfloat16>(attn::BackwardParams<__nv_bfloat16>)",
        "void attn::async_backward_keys_kernel<__nv_bfloat16, attn::AsyncBackward<64>, 7>(attn::BackwardParams<...",
    ),
}
CLAIMS = sorted(FAMILIES)
# What runs beside each of them, and proves nothing.
BESIDES = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<int>, std::array<char*, 1ul> >(int, ...",
    "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_tn",
    "Memcpy DtoD (Device -> Device)",
)


def ran(*names: str) -> list[dict[str, object]]:
    return [{"name": name, "share": 1 / len(names), "count": 1} for name in names]


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("family", CLAIMS)
def test_a_declared_pattern_knows_its_own_kernels_and_no_others(claim: str, family: str) -> None:
    pattern = IMPLEMENTATIONS[claim].kernels
    found = [bool(re.search(pattern, name)) for name in FAMILIES[family]]
    own = FAMILIES[claim] == FAMILIES[family]
    assert found == [own] * len(found)


@pytest.mark.parametrize("name", [name for name, impl in IMPLEMENTATIONS.items() if impl.kernels])
def test_what_runs_beside_proves_nothing(name: str) -> None:
    with pytest.raises(RanAnother):
        check_identity(ran(*BESIDES), IMPLEMENTATIONS[name].kernels)


def test_only_plain_torch_declares_no_kernels() -> None:
    assert [name for name, impl in IMPLEMENTATIONS.items() if not impl.kernels] == ["tiled-torch"]


def test_a_declared_kernel_may_stand_anywhere() -> None:
    check_identity(ran("aten::copy_", "void flash::flash_fwd_kernel<...>"), "flash::flash_")


def test_another_kernel_is_named() -> None:
    with pytest.raises(RanAnother, match=r"^ran softmax_warp_forward$"):
        check_identity(ran("softmax_warp_forward", "gemm"), "flash::flash_")


def test_no_claim_fits_anything_and_no_kernel_fits_no_claim() -> None:
    check_identity(ran("anything"), "")
    with pytest.raises(RanAnother, match=r"^ran no kernel at all$"):
        check_identity([], "flash::flash_")


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


def test_a_silent_fall_back_inside_torch_is_caught() -> None:
    def falls_back(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        out: torch.Tensor = IMPLEMENTATIONS["sdpa-math"](q, k, v, problem)
        return out

    impl = dataclasses.replace(sdpa_flash, name="falls-back", fn=falls_back)
    record = measure(impl, SMALL, Direction.FWD, CPU, QUICK)
    assert record.status == "error"
    assert str(record.reason).startswith("ran aten::")
