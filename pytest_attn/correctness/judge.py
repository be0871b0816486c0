"""Run an implementation on a case and judge what comes back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from attn_impls.implementation import Implementation, Unavailable
from attn_impls.naive import naive
from attn_impls.problem import Direction, Problem
from pytest_attn.correctness.budget import TensorVerdict, judge_tensor
from pytest_attn.correctness.case import Case, Tensors, make_tensors
from pytest_attn.correctness.oracle import solve


class WrongOutput(AssertionError):
    """The implementation returned something that cannot be compared: a wrong type, shape, dtype or device."""


class NotDifferentiable(AssertionError):
    """The output does not require grad though the inputs do."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found for one implementation on one case: tensor by tensor, or the sentence that ended it early."""

    impl: str
    case: Case
    direction: Direction
    device: str
    tensors: tuple[TensorVerdict, ...] = ()
    broken: str | None = None
    raised: BaseException | None = field(default=None, compare=False)

    @property
    def ok(self) -> bool:
        """Whether every tensor keeps within its budget."""
        return self.broken is None and all(tensor.ok for tensor in self.tensors)

    @property
    def ratio(self) -> float:
        """The largest error over its budget; infinite when nothing could be compared."""
        if self.broken is not None:
            return float("inf")
        return max((max(t.ratio, t.rms_ratio) for t in self.tensors), default=0.0)

    def explain(self) -> str:
        """Say in a few lines what is wrong, where, and by how much."""
        lines = [f"{self.impl} is wrong on {self.case.problem.id}"]
        lines.append(f"  regime {self.case.regime}, seed {self.case.seed}, {self.direction.value}, on {self.device}")
        if self.broken is not None:
            lines.append(f"  {self.broken}")
        for tensor in self.tensors:
            lines.append(f"  {'ok   ' if tensor.ok else 'WRONG'} {_describe(tensor)}")
        return "\n".join(lines)


def _describe(tensor: TensorVerdict) -> str:
    text = f"{tensor.name:4} error/budget {tensor.ratio:.3g} (rms {tensor.rms_ratio:.3g})"
    if tensor.ok:
        return text
    where = ", ".join(str(i) for i in tensor.index)
    text += (
        f" at [{where}]: got {tensor.got:.6g}, want {tensor.want:.6g}, off by {tensor.error:.3g} of {tensor.budget:.3g}"
    )
    return f"{text}; {tensor.nonfinite} values are not finite" if tensor.nonfinite else text


def judge(impl: Implementation, case: Case, direction: Direction, device: torch.device) -> Verdict:
    """Run ``impl`` on ``case`` and compare ``out`` and ``lse`` where it returns one; with backward ``dq, dk, dv`` too.

    Whatever the implementation raises is a verdict, not an exception; :class:`attn_impls.Unavailable`, which says
    that it cannot run at all, passes through.
    """
    tensors = make_tensors(case, device)
    kept = tensors.clone()
    poison(tensors)
    with warnings.catch_warnings(record=True) as warned:
        # A warning is not a wrong result, even where the user turns warnings into errors for tests of their own.
        warnings.simplefilter("always")
        try:
            got = run(impl, case.problem, tensors, direction, with_lse=True)
            if (name := tensors.changed_since(kept)) is not None:
                raise WrongOutput(f"it changed its input {name}")
        except (Unavailable, NotDifferentiable):
            raise
        except WrongOutput as error:
            return Verdict(impl.name, case, direction, str(device), broken=str(error))
        except Exception as error:
            sentence = f"raised {type(error).__name__}: {str(error).strip() or 'without a message'}"
            sentence += "".join(f"\n  warned: {text}" for text in dict.fromkeys(str(w.message) for w in warned))
            return Verdict(impl.name, case, direction, str(device), broken=sentence, raised=error)
    return Verdict(impl.name, case, direction, str(device), tuple(judge_results(got, case.problem, tensors)))


def poison(tensors: Tensors) -> None:
    """Fill the blocks that the allocator will hand out next with NaN.

    A kernel that leaves part of its output unwritten would otherwise pass on what an earlier, right call left there:
    the results of the same case sit in exactly these blocks.
    """
    like = (tensors.q, tensors.q, tensors.q, tensors.k, tensors.v, tensors.dout)
    blocks = [torch.full_like(tensor, math.nan) for tensor in like for _ in range(2)]
    blocks += [torch.full(tensors.q.shape[:-1], math.nan, device=tensors.q.device) for _ in range(4)]
    del blocks


def run(
    impl: Implementation, problem: Problem, tensors: Tensors, direction: Direction, *, with_lse: bool = False
) -> dict[str, torch.Tensor]:
    """Call ``impl`` and return its results by name: ``out``, and with backward ``dq, dk, dv``.

    ``with_lse`` asks an implementation that claims ``returns_lse`` once more, forward, for ``lse`` and the ``out`` that
    comes with it, named ``out with lse``.

    Raises:
        WrongOutput: the output (or a gradient) has the wrong type, shape, dtype or device.
        NotDifferentiable: a gradient is wanted and the output has none.
    """
    backward = direction is not Direction.FWD
    inputs = tensors.requires_grad() if backward else tensors
    results: dict[str, torch.Tensor] = {}
    with torch.set_grad_enabled(backward):
        out = impl(inputs.q, inputs.k, inputs.v, problem)
        _check("the output", out, tensors.q.shape, tensors.q.dtype, tensors.q.device)
        results["out"] = out
        if with_lse and impl.capabilities.returns_lse and not backward:
            results |= _run_with_lse(impl, problem, inputs)
    if backward:
        if not out.requires_grad:
            raise NotDifferentiable(f"{impl.name} returned an output without a gradient function")
        gradients = torch.autograd.grad(out, (inputs.q, inputs.k, inputs.v), tensors.dout, allow_unused=True)
        for name, gradient, like in zip(("dq", "dk", "dv"), gradients, (tensors.q, tensors.k, tensors.v), strict=True):
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


def judge_results(got: dict[str, torch.Tensor], problem: Problem, tensors: Tensors) -> Sequence[TensorVerdict]:
    """Compare results by name with the oracle, each under the budget that ``naive`` earns on the same inputs."""
    backward = "dq" in got
    truth = solve(problem, tensors, gradients=backward)
    yardstick = run(naive, problem, tensors, Direction.BWD if backward else Direction.FWD, with_lse=True)
    return [
        judge_tensor(name, tensor, yardstick[name.removesuffix(" with lse")], truth) for name, tensor in got.items()
    ]


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
