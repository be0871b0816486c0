"""Call an implementation, and refuse what cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from attn_impls.implementation import Implementation
from attn_impls.problem import Direction, Problem
from pytest_attn.correctness.case import Tensors
from pytest_attn.correctness.storage import placed


class WrongOutput(AssertionError):
    """The implementation returned something that cannot be compared: a wrong type, shape, dtype or device."""


class NotDifferentiable(AssertionError):
    """The output does not require grad though the inputs do."""


def run(
    impl: Implementation,
    problem: Problem,
    tensors: Tensors,
    direction: Direction,
    *,
    with_lse: bool = False,
    later_call: bool = False,
) -> dict[str, torch.Tensor]:
    """Call ``impl`` and return its results by name: ``out``, and with backward ``dq, dk, dv``.

    ``with_lse`` asks an implementation that claims ``returns_lse`` once more, forward, for ``lse`` and the ``out`` that
    comes with it, named ``out with lse``. ``later_call`` calls it once more, with the queries' signs changed, before
    the backward pass.

    Raises:
        WrongOutput: the output (or a gradient) has the wrong type, shape, dtype or device, or a later call changed it.
        NotDifferentiable: a gradient is wanted and the output has none.
    """
    backward = direction is not Direction.FWD
    inputs = tensors.requires_grad() if backward else tensors
    results: dict[str, torch.Tensor] = {}
    with torch.set_grad_enabled(backward):
        out = results["out"] = forward(impl, problem, inputs)
        if with_lse and impl.capabilities.returns_lse and not backward:
            results |= _run_with_lse(impl, problem, inputs)
        if later_call:
            kept = copies(results)
            others = replace(tensors, q=placed(-tensors.q, problem.layout))
            others = others.requires_grad() if backward else others
            _later = impl(others.q, others.k, others.v, problem)  # kept alive: its memory is its own
            check_unchanged(results, kept)
    return results | gradients(impl, out, inputs) if backward else results


def forward(impl: Implementation, problem: Problem, inputs: Tensors) -> torch.Tensor:
    """Return what ``impl`` returns, ``[batch, heads, q_len, head_dim]`` in the inputs' dtype and on their device.

    Raises :class:`WrongOutput` for anything else.
    """
    out = impl(inputs.q, inputs.k, inputs.v, problem)
    _check("the output", out, inputs.q.shape, inputs.q.dtype, inputs.q.device)
    result: torch.Tensor = out
    return result


def gradients(impl: Implementation, out: torch.Tensor, leaves: Tensors) -> dict[str, torch.Tensor]:
    """Return ``dq, dk, dv``, each like its input, for ``out``, which ``impl`` made of ``leaves``.

    Raises:
        WrongOutput: a gradient is missing or unlike its input.
        NotDifferentiable: the output has none.
    """
    if not out.requires_grad:
        raise NotDifferentiable(f"{impl.name} returned an output without a gradient function")
    found = torch.autograd.grad(out, (leaves.q, leaves.k, leaves.v), leaves.dout, allow_unused=True)
    results: dict[str, torch.Tensor] = {}
    for name, gradient, like in zip(("dq", "dk", "dv"), found, (leaves.q, leaves.k, leaves.v), strict=True):
        if gradient is None:
            raise WrongOutput(f"{name} is missing: the output does not depend on {name[1:]}")
        _check(name, gradient, like.shape, like.dtype, like.device)
        results[name] = gradient
    return results


def _run_with_lse(impl: Implementation, problem: Problem, inputs: Tensors) -> dict[str, torch.Tensor]:
    returned = impl(inputs.q, inputs.k, inputs.v, problem, return_lse=True)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise WrongOutput(f"{impl.name} claims returns_lse and returned {_named(returned)}, not (out, lse)")
    out, lse = returned
    _check("the output with lse", out, inputs.q.shape, inputs.q.dtype, inputs.q.device)
    _check("lse", lse, inputs.q.shape[:-1], torch.float32, inputs.q.device)
    return {"lse": lse, "out with lse": out}


def copies(results: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the results as they are now, apart from later calls."""
    return {name: tensor.detach().clone() for name, tensor in results.items()}


def check_unchanged(results: dict[str, torch.Tensor], kept: dict[str, torch.Tensor]) -> None:
    """Raise :class:`WrongOutput` where a result is no longer what was kept of it."""
    if (name := first_difference(kept, results)) is not None:
        raise WrongOutput(f"a later call changed the result of an earlier one: {name}")


def first_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> str | None:
    """Return the name of the first result that differs from its other, of one shape with it.

    What is not finite is the oracle's to judge.
    """
    if not one:
        return None
    differs = [tensor.isfinite().all() & (tensor != other[name]).any() for name, tensor in one.items()]
    # One copy from the device for all of them.
    return next((name for name, found in zip(one, torch.stack(differs).tolist(), strict=True) if found), None)


def _check(what: str, tensor: Any, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise WrongOutput(f"{what} is {_named(tensor)}, not a tensor")
    for attribute, have, want in (
        ("shape", tuple(tensor.shape), tuple(shape)),
        ("dtype", tensor.dtype, dtype),
        ("device", tensor.device, device),
    ):
        if have != want:
            raise WrongOutput(f"{what} has {attribute} {have}, not {want}")


def _named(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
