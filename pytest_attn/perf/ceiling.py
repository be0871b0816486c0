"""What the machine reaches in a matrix product and in a copy: ceilings for the roofline, by the timer of the run.

A datasheet promises what no program gets; these are programs that do nothing else. They are taken once a run, before
the first cell of a dtype, and are no record: nothing is compared with them but in the report.
"""

from __future__ import annotations

from statistics import median

import torch

from pytest_attn.correctness.case import DTYPES
from pytest_attn.perf.timers import Call, Timer

_ROUNDS = 6
# Sizes at which the result no longer depends on the size: GPUs of the data centre, smaller ones, CPUs.
_LARGE_DEVICE_BYTES = 16 * 2**30
_PRODUCT_ON_LARGE, _PRODUCT_ON_SMALL, _PRODUCT_ON_CPU = 8192, 4096, 1024
_COPY_ON_CUDA, _COPY_ON_CPU = 2**29, 2**26  # bytes: beyond the caches


def product_tflops(timer: Timer, device: torch.device, dtype: str) -> float | None:
    """Return TFLOP/s (2 n^3 over the median of some rounds) of a square matrix product in ``dtype``, on N(0, 1) values.

    ``None`` where it cannot be taken: too little memory, or no such product on this device.
    """
    size = _product_size(device)
    try:
        draw = torch.Generator(device).manual_seed(0)
        one, other = (torch.randn(size, size, device=device, generator=draw).to(DTYPES[dtype]) for _ in range(2))
        out = torch.empty_like(one)
        seconds = _seconds(timer, lambda: torch.mm(one, other, out=out))
    except RuntimeError:
        return None
    return 2 * size**3 / seconds / 1e12


def copy_gbps(timer: Timer, device: torch.device) -> float | None:
    """Return GB/s, read and written, of a copy within the device's memory; ``None`` where there is no room for it."""
    nbytes = _COPY_ON_CUDA if device.type == "cuda" else _COPY_ON_CPU
    try:
        draw = torch.Generator(device).manual_seed(0)
        source = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device=device, generator=draw)
        target = torch.empty_like(source)
        seconds = _seconds(timer, lambda: target.copy_(source))
    except RuntimeError:
        return None
    return 2 * nbytes / seconds / 1e9


def _product_size(device: torch.device) -> int:
    if device.type != "cuda":
        return _PRODUCT_ON_CPU
    large = torch.cuda.get_device_properties(device).total_memory >= _LARGE_DEVICE_BYTES
    return _PRODUCT_ON_LARGE if large else _PRODUCT_ON_SMALL


def _seconds(timer: Timer, call: Call) -> float:
    source = timer.source(lambda: call)
    source.batch(1)  # chooses the library's kernel, and wakes threads
    durations: list[float] = []
    while len(durations) < _ROUNDS:
        durations += source.batch(_ROUNDS - len(durations))
    return median(durations)
