"""The arithmetic peak: what the formula gives at the datasheet's clock is what the datasheet says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pytest_attn.perf.datasheet import nominal_tflops
from pytest_attn.perf.peak import percent_of_peak, tflops_at

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "capability", "multiprocessors", "mhz"),
    [
        ("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1410),
        ("NVIDIA H100 80GB HBM3", (9, 0), 132, 1830),
        ("NVIDIA H100 PCIe", (9, 0), 114, 1620),
        ("NVIDIA H200", (9, 0), 132, 1830),
    ],
)
def test_the_formula_gives_the_datasheets_number(
    name: str, capability: tuple[int, int], multiprocessors: int, mhz: float
) -> None:
    nominal = nominal_tflops(name, "bf16")
    assert nominal == nominal_tflops(name, "fp16")
    assert tflops_at(capability, multiprocessors, mhz, "bf16") == pytest.approx(nominal, rel=1e-3)


def test_fp32_is_not_the_tensor_cores() -> None:
    assert nominal_tflops("NVIDIA H100 80GB HBM3", "fp32") == 66.9
    assert tflops_at((9, 0), 132, 1980, "fp32") == pytest.approx(66.9, rel=1e-3)  # its boost clock
    assert tflops_at((8, 0), 108, 1410, "fp32") == pytest.approx(19.5, rel=1e-3)


def test_an_unknown_device_has_no_peak() -> None:
    assert nominal_tflops("Some GPU 9000", "bf16") is None
    assert tflops_at((7, 5), 40, 1590, "fp16") is None


def test_percent_of_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    h100 = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: h100)
    nominal, at_clock = percent_of_peak(494.7, CUDA, "bf16", 915.0)
    assert nominal == pytest.approx(50)
    assert at_clock == pytest.approx(100, rel=1e-3)  # at half the clock it is all there was
    assert percent_of_peak(494.7, CUDA, "bf16", None) == (nominal, None)
    assert percent_of_peak(None, CUDA, "bf16", 915.0) == (None, None)
    assert percent_of_peak(0.1, torch.device("cpu"), "bf16", None) == (None, None)


def test_percent_of_an_unknown_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = SimpleNamespace(name="Some GPU", major=7, minor=5, multi_processor_count=40)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: unknown)
    assert percent_of_peak(10.0, CUDA, "fp16", 1590.0) == (None, None)
