"""The twelve cells of the repeatability runs, long and short kernels, and how to call one outside of the harness."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import torch

from attn_impls import Direction, Implementation, Problem, discover
from attn_impls.problem import CAUSAL, FULL
from pytest_attn.correctness.case import Case, make_tensors

DEVICE = torch.device("cuda", 0)
FWD, BWD = Direction.FWD, Direction.BWD

CELLS: list[tuple[str, Problem, Direction]] = [
    ("sdpa-flash", Problem(16, 32, 32, 1024, 1024, 64, "fp16", FULL), FWD),
    ("sdpa-cudnn", Problem(16, 32, 32, 1024, 1024, 64, "fp16", FULL), FWD),
    ("sdpa-flash", Problem(16, 32, 32, 1024, 1024, 64, "fp16", CAUSAL), BWD),
    ("sdpa-cudnn", Problem(4, 16, 16, 4096, 4096, 128, "bf16", CAUSAL), FWD),
    ("sdpa-cudnn", Problem(4, 16, 16, 4096, 4096, 128, "bf16", CAUSAL), BWD),
    ("sdpa-efficient", Problem(1, 16, 16, 8192, 8192, 64, "bf16", FULL), FWD),
    ("naive", Problem(16, 16, 16, 512, 512, 64, "fp16", FULL), FWD),
    ("sdpa-flash", Problem(4, 16, 16, 1024, 1024, 64, "bf16", CAUSAL), FWD),
    ("sdpa-cudnn", Problem(4, 16, 16, 1024, 1024, 64, "bf16", CAUSAL), FWD),
    ("sdpa-flash", Problem(2, 16, 16, 512, 512, 128, "bf16", FULL), FWD),
    ("sdpa-cudnn", Problem(2, 16, 16, 512, 512, 128, "bf16", FULL), BWD),
    ("sdpa-efficient", Problem(1, 16, 16, 256, 256, 64, "bf16", FULL), FWD),
]


def commit() -> str:
    """Return the commit of the checkout that runs this, with ``-dirty`` behind it where files were changed."""
    described = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(described, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def implementation(name: str) -> Implementation:
    return discover().resolve(name)


def closure(name: str, problem: Problem, direction: Direction) -> Callable[[], object]:
    """Return the call that others would time: ``do_bench``, ``ncu``."""
    impl = implementation(name)
    tensors = make_tensors(Case(problem), DEVICE, draw_on=DEVICE)
    if direction is Direction.FWD:
        return lambda: impl(tensors.q, tensors.k, tensors.v, problem)
    leaves = tensors.requires_grad()
    out = impl(leaves.q, leaves.k, leaves.v, problem)
    return lambda: torch.autograd.grad(out, (leaves.q, leaves.k, leaves.v), tensors.dout, retain_graph=True)
