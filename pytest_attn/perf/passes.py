"""The calls that are timed and those whose memory is taken, for each direction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from attn_impls.implementation import Implementation
from attn_impls.problem import Direction, Problem
from pytest_attn.correctness.case import Tensors
from pytest_attn.correctness.running import forward, gradients
from pytest_attn.perf.memory import SavedBytes, peak_bytes
from pytest_attn.perf.record import Memory
from pytest_attn.perf.timers import Call


def timed_round(impl: Implementation, problem: Problem, tensors: Tensors, direction: Direction) -> Callable[[], Call]:
    """Return what prepares one round: a call on fresh leaves, with a fresh graph where backward is timed.

    No gradient is accumulated and no graph retained, so that every round does the same work.
    """

    def forward_call() -> Call:
        def call() -> object:
            with torch.no_grad():
                return impl(tensors.q, tensors.k, tensors.v, problem)

        return call

    def backward_call() -> Call:
        leaves = tensors.requires_grad()
        out = impl(leaves.q, leaves.k, leaves.v, problem)
        return lambda: torch.autograd.grad(out, (leaves.q, leaves.k, leaves.v), tensors.dout)

    def both_calls() -> Call:
        leaves = tensors.requires_grad()

        def call() -> object:
            out = impl(leaves.q, leaves.k, leaves.v, problem)
            return torch.autograd.grad(out, (leaves.q, leaves.k, leaves.v), tensors.dout)

        return call

    return {Direction.FWD: forward_call, Direction.BWD: backward_call, Direction.FWD_BWD: both_calls}[direction]


def memory_of(
    impl: Implementation,
    problem: Problem,
    tensors: Tensors,
    direction: Direction,
    device: torch.device,
    output_bytes: int,
) -> tuple[Memory, dict[str, torch.Tensor]]:
    """Run one call more; return its peak over the inputs, its workspace, what it saves for backward, and its results.

    Raises as :func:`~pytest_attn.correctness.running.run`.
    """
    results: dict[str, torch.Tensor] = {}
    backward = direction is not Direction.FWD
    inputs = tensors.requires_grad() if backward else tensors
    saved = SavedBytes((inputs.q, inputs.k, inputs.v))

    def forward_pass() -> None:
        # Hooks only where something is saved: a forward call is judged by what it returns here, too.
        with torch.set_grad_enabled(backward), saved if backward else contextlib.nullcontext():
            results["out"] = forward(impl, problem, inputs)

    def backward_pass() -> None:
        results.update(gradients(impl, results["out"], inputs))

    def both() -> None:
        forward_pass()
        backward_pass()

    before, measured = {
        Direction.FWD: (_nothing, forward_pass),
        Direction.BWD: (forward_pass, backward_pass),
        Direction.FWD_BWD: (_nothing, both),
    }[direction]
    peak = peak_bytes(before, measured, device)
    return Memory(peak, max(0, peak - output_bytes), saved.total if backward else None), results


def _nothing() -> None:
    return None
