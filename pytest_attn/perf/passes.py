"""The calls that are timed and those whose memory is taken, for each direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from attn_impls.implementation import Implementation
from attn_impls.problem import Direction, Problem
from pytest_attn.correctness.case import Tensors
from pytest_attn.perf.memory import SavedBytes, peak_bytes
from pytest_attn.perf.record import Memory
from pytest_attn.perf.timers import Call


def timed_round(impl: Implementation, problem: Problem, tensors: Tensors, direction: Direction) -> Callable[[], Call]:
    """Return what prepares one round: a call on fresh leaves, with a fresh graph where backward is timed.

    No gradient is accumulated and no graph retained, so that every round does the same work.
    """

    def forward() -> Call:
        def call() -> object:
            with torch.no_grad():
                return impl(tensors.q, tensors.k, tensors.v, problem)

        return call

    def backward() -> Call:
        leaves = tensors.requires_grad()
        out = impl(leaves.q, leaves.k, leaves.v, problem)
        return lambda: torch.autograd.grad(out, (leaves.q, leaves.k, leaves.v), tensors.dout)

    def both() -> Call:
        leaves = tensors.requires_grad()

        def call() -> object:
            out = impl(leaves.q, leaves.k, leaves.v, problem)
            return torch.autograd.grad(out, (leaves.q, leaves.k, leaves.v), tensors.dout)

        return call

    return {Direction.FWD: forward, Direction.BWD: backward, Direction.FWD_BWD: both}[direction]


def memory_of(
    impl: Implementation,
    problem: Problem,
    tensors: Tensors,
    direction: Direction,
    device: torch.device,
    output_bytes: int,
) -> Memory:
    """Run one call more and return its peak over the inputs, its workspace and what it saves for backward."""
    if direction is Direction.FWD:
        peak = peak_bytes(_nothing, timed_round(impl, problem, tensors, direction)(), device)
        return Memory(peak, max(0, peak - output_bytes))
    leaves = tensors.requires_grad()
    saved = SavedBytes((leaves.q, leaves.k, leaves.v))
    state: dict[str, Any] = {}

    def forward() -> None:
        with saved:
            state["out"] = impl(leaves.q, leaves.k, leaves.v, problem)

    def backward() -> object:
        out = state.pop("out")
        return torch.autograd.grad(out, (leaves.q, leaves.k, leaves.v), tensors.dout)

    def both() -> object:
        forward()
        return backward()

    peak = peak_bytes(forward, backward, device) if direction is Direction.BWD else peak_bytes(_nothing, both, device)
    return Memory(peak, max(0, peak - output_bytes), saved.total)


def _nothing() -> None:
    return None
