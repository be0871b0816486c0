"""The arithmetic peak of a device, for percent of peak: at its datasheet's clock, and at the one that was there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pytest_attn.perf.datasheet import nominal_tflops


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Dense floating-point operations a clock and a multiprocessor: tensor cores in 16 bit, FMA units in fp32.

    Source: NVIDIA's architecture whitepapers (A100, table 1; H100, table 3; Ada, appendix A). A fused multiply-add
    counts as two, accumulation is in fp32, and TF32 is not fp32.
    """

    half: int
    single: int


_PER_SM: dict[tuple[int, int], Arithmetic] = {
    (8, 0): Arithmetic(half=2048, single=128),
    (8, 6): Arithmetic(half=512, single=256),
    (8, 9): Arithmetic(half=1024, single=256),
    (9, 0): Arithmetic(half=4096, single=256),
    (10, 0): Arithmetic(half=8192, single=256),
}


def tflops_at(capability: tuple[int, int], multiprocessors: int, sm_mhz: float, dtype: str) -> float | None:
    """Return the dense TFLOP/s of that many multiprocessors at ``sm_mhz``; ``None`` for an unknown architecture."""
    arithmetic = _PER_SM.get(capability)
    if arithmetic is None:
        return None
    per_clock = arithmetic.single if dtype == "fp32" else arithmetic.half
    return per_clock * multiprocessors * sm_mhz * 1e6 / 1e12


def percent_of_peak(
    tflops: float | None, device: torch.device, dtype: str, sm_mhz: float | None
) -> tuple[float | None, float | None]:
    """Return ``tflops`` as percent of the datasheet's peak and of the peak at ``sm_mhz``; ``None`` where unknown."""
    if tflops is None or device.type != "cuda":
        return None, None
    properties = torch.cuda.get_device_properties(device)
    nominal = nominal_tflops(properties.name, dtype)
    capability = (properties.major, properties.minor)
    at_clock = None if not sm_mhz else tflops_at(capability, properties.multi_processor_count, sm_mhz, dtype)
    return _percent(tflops, nominal), _percent(tflops, at_clock)


def _percent(tflops: float, peak: float | None) -> float | None:
    return None if peak is None else 100 * tflops / peak
