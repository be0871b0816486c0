"""What NVIDIA's datasheets promise: dense arithmetic and memory bandwidth, by the device's name. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Datasheet:
    """Dense TFLOP/s in 16 bit and in fp32, and the bandwidth of the device's memory in GB/s."""

    half: float
    single: float
    bandwidth: float


# By the beginning of the device's name; the first that fits counts.
_DATASHEETS: dict[str, Datasheet] = {
    "NVIDIA A100-SXM4-80GB": Datasheet(312.0, 19.5, 2039.0),
    "NVIDIA A100 80GB PCIe": Datasheet(312.0, 19.5, 1935.0),
    "NVIDIA A100": Datasheet(312.0, 19.5, 1555.0),
    "NVIDIA H100 80GB HBM3": Datasheet(989.4, 66.9, 3350.0),
    "NVIDIA H100 PCIe": Datasheet(756.0, 51.0, 2000.0),
    "NVIDIA H200": Datasheet(989.4, 66.9, 4800.0),
}


def datasheet(name: str) -> Datasheet | None:
    """Return the datasheet of the device called ``name``; ``None`` for one that is not listed."""
    return next((found for prefix, found in _DATASHEETS.items() if name.startswith(prefix)), None)


def nominal_tflops(name: str, dtype: str) -> float | None:
    """Return the datasheet's dense TFLOP/s of the device called ``name``; ``None`` for one that is not listed."""
    known = datasheet(name)
    return None if known is None else known.single if dtype == "fp32" else known.half
