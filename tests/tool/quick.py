"""Terms for measurements in tests: on a CPU, a few rounds, and a number however busy the machine is."""

from __future__ import annotations

import math

import torch

from pytest_attn.perf.contract import Contract
from pytest_attn.perf.instruments import Instruments

CPU = torch.device("cpu")
QUICK = Contract(
    "wall",
    version=2,
    warmup_s=0.0,
    warmup_cap_s=0.0,
    flat=1.0,
    batch_s=1e-3,
    min_rounds=3,
    max_rounds=3,
    least_s=0.0,
    budget_s=0.0,
    precision=0.005,
    noisy_above=math.inf,
)


def instruments() -> Instruments:
    """What measures under :data:`QUICK`."""
    return Instruments(CPU, QUICK)
