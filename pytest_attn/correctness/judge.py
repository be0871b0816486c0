"""Run an implementation on a case and judge what comes back."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from attn_impls.implementation import Implementation, Unavailable
from attn_impls.naive import naive
from attn_impls.problem import Direction, Problem
from pytest_attn.correctness.budget import RULES, TensorVerdict, judge_tensor
from pytest_attn.correctness.case import Case, Tensors, make_tensors
from pytest_attn.correctness.oracle import solve
from pytest_attn.correctness.storage import placed, storage_of

# Scores that naive, the yardstick, may hold at once: beyond, it runs head by head.
_MOST_SCORES = 2**28
# Beyond, an extra call to see whether it spoils an earlier one's results costs too much.
_MOST_FLOPS_FOR_A_LATER_CALL = 2**25
# Multiplications of a square matrix of this size on another stream: milliseconds, longer than most kernels here.
_LOAD_SIZE, _LOAD_TIMES = 2048, 16


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
    def ratios(self) -> dict[str, float]:
        """The largest error over its budget by each rule; infinite when nothing could be compared."""
        if self.broken is not None:
            return dict.fromkeys(RULES, math.inf)
        return {rule: max((tensor.ratios[rule] for tensor in self.tensors), default=0.0) for rule in RULES}

    @property
    def ratio(self) -> float:
        """The largest of all :attr:`ratios`."""
        return max(self.ratios.values())

    @property
    def where(self) -> str:
        """The tensor, where one was compared, and the case of the largest of :attr:`ratios`."""
        worst = max(self.tensors, key=lambda tensor: tensor.worst, default=None)
        return self.case.id if worst is None else f"{worst.name} {self.case.id}"

    def explain(self) -> str:
        """Say in a few lines what is wrong, where, and by how much."""
        lines = [f"{self.impl} is wrong on {self.case.problem.id}"]
        lines.append(f"  regime {self.case.regime}, seed {self.case.seed}, {self.direction.value}, on {self.device}")
        if (storage := storage_of(self.case.seed)) != "dense":
            lines.append(f"  the inputs are stored as views: {storage}")
        if self.broken is not None:
            lines.append(f"  {self.broken}")
        return "\n".join([*lines, *self.findings()])

    def findings(self) -> list[str]:
        """Say of each tensor whether it keeps within its budget."""
        return [f"  {'ok   ' if tensor.ok else 'WRONG'} {_describe(tensor)}" for tensor in self.tensors]


def _describe(tensor: TensorVerdict) -> str:
    text = f"{tensor.name:4} error/budget {tensor.ratio:.3g} (rms {tensor.rms_ratio:.3g})"
    if tensor.ok:
        return text
    parts = [
        f"{text} at {_place(tensor.index)}: got {tensor.got:.6g}, want {tensor.want:.6g}, "
        f"off by {tensor.error:.3g}, allowed {tensor.budget:.3g}"
    ]
    if tensor.row_ratio > 1:
        parts.append(f"row {_place(tensor.row)} is {tensor.row_ratio:.3g} times its budget off")
    for what, value, budget in (
        ("the whole", tensor.gain, tensor.gain_budget),
        ("the softmax scale", tensor.scale, tensor.scale_budget),
    ):
        if abs(value) > budget:
            parts.append(f"{what} seems off by {100 * value:+.3g} %, allowed ±{100 * budget:.3g} %")
    if tensor.nonfinite:
        parts.append(f"{tensor.nonfinite} values are not finite")
    return "\n        ".join(parts)


def _place(index: Sequence[int]) -> str:
    return f"[{', '.join(str(i) for i in index)}]"


def judge(impl: Implementation, case: Case, direction: Direction, device: torch.device) -> Verdict:
    """Run ``impl`` on ``case`` and compare ``out`` and ``lse`` where it returns one; with backward ``dq, dk, dv`` too.

    On CUDA it runs while another stream is busy, which makes a race that needs bad luck likelier. Where it claims to be
    deterministic, a second run must give the same bits. Where the problem is not large, one more forward call, on other
    values, comes before the backward pass: what earlier calls returned or keep for it must stay as it was.

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
            with other_stream_busy(device), new_memory_is_nan(device):
                later = case.problem.flops() <= _MOST_FLOPS_FOR_A_LATER_CALL
                returned = run(impl, case.problem, tensors, direction, with_lse=True, later_call=later)
            got = _copies(returned)
            if (name := tensors.changed_since(kept)) is not None:
                raise WrongOutput(f"it changed its input {name}")
            if impl.capabilities.deterministic:
                again = run(impl, case.problem, tensors, direction, with_lse=True)
                if (name := _first_difference(got, again)) is not None:
                    raise WrongOutput(
                        f"it claims to be deterministic, and two runs on the same inputs differ in {name}"
                    )
                _check_unchanged(returned, got)
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


@contextlib.contextmanager
def new_memory_is_nan(device: torch.device) -> Iterator[None]:
    """On the CPU, let every tensor that torch allocates start as NaN.

    What :func:`poison` leaves behind seldom comes back from the CPU's allocator. Torch does this itself in its
    deterministic mode, which on CUDA would choose other kernels than users run.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


@contextlib.contextmanager
def other_stream_busy(device: torch.device) -> Iterator[None]:
    """On CUDA, keep the device busy from a second stream, whose memory is its own."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        matrix = torch.zeros(_LOAD_SIZE, _LOAD_SIZE, device=device)
        for _ in range(_LOAD_TIMES):
            torch.mm(matrix, matrix)
    try:
        yield
    finally:
        stream.synchronize()


def _copies(results: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in results.items()}


def _check_unchanged(results: dict[str, torch.Tensor], kept: dict[str, torch.Tensor]) -> None:
    if (name := _first_difference(kept, results)) is not None:
        raise WrongOutput(f"a later call changed the result of an earlier one: {name}")


def _first_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> str | None:
    """Return the name of the first result whose bits differ; what is not finite is the oracle's to judge."""
    for name, tensor in one.items():
        if bool(tensor.isfinite().all()) and not torch.equal(tensor, other[name]):
            return name
    return None


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
        out = impl(inputs.q, inputs.k, inputs.v, problem)
        _check("the output", out, tensors.q.shape, tensors.q.dtype, tensors.q.device)
        results["out"] = out
        if with_lse and impl.capabilities.returns_lse and not backward:
            results |= _run_with_lse(impl, problem, inputs)
        if later_call:
            kept = _copies(results)
            others = replace(tensors, q=placed(-tensors.q, problem.layout))
            others = others.requires_grad() if backward else others
            _later = impl(others.q, others.k, others.v, problem)  # kept alive: its memory is its own
            _check_unchanged(results, kept)
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
    yardstick = _yardstick(problem, tensors, Direction.BWD if backward else Direction.FWD)
    return [
        judge_tensor(name, tensor, yardstick[name.removesuffix(" with lse")], truth) for name, tensor in got.items()
    ]


def _yardstick(problem: Problem, tensors: Tensors, direction: Direction) -> dict[str, torch.Tensor]:
    """Return what ``naive`` gives, computed in parts where its score matrix would be too large."""
    if problem.batch * problem.heads * problem.q_len * problem.kv_len <= _MOST_SCORES:
        return run(naive, problem, tensors, direction, with_lse=True)
    parts: list[dict[str, torch.Tensor]] = []
    for b in range(problem.batch):
        for h in range(problem.kv_heads):
            part, inputs = cut(problem, tensors, b, h)
            parts.append(run(naive, part, inputs, direction, with_lse=True))
    whole: dict[str, torch.Tensor] = {}
    for name in parts[0]:
        joined = torch.cat([part[name] for part in parts], dim=1)  # [1, batch * heads, ...]
        whole[name] = joined.unflatten(1, (problem.batch, -1)).squeeze(0)
    return whole


def cut(problem: Problem, tensors: Tensors, batch: int, kv_head: int) -> tuple[Problem, Tensors]:
    """Return the part of a problem that is one key head of one batch, with the query heads that read it, as views."""
    group = problem.heads // problem.kv_heads
    part = replace(problem, batch=1, heads=group, kv_heads=1)

    def of(tensor: torch.Tensor) -> torch.Tensor:
        return cut_result(problem, tensor, batch, kv_head)

    return part, Tensors(of(tensors.q), of(tensors.k), of(tensors.v), of(tensors.dout))


def cut_result(problem: Problem, tensor: torch.Tensor, batch: int, kv_head: int) -> torch.Tensor:
    """Return the part of ``tensor``, ``[batch, heads or kv_heads, ...]``, that belongs to one key head of one batch."""
    size = tensor.shape[1] // problem.kv_heads
    return tensor.detach()[batch : batch + 1, kv_head * size : (kv_head + 1) * size]


def judge_last(impl: Implementation, case: Case, direction: Direction, device: torch.device) -> Verdict:
    """Run ``impl`` on a problem too large to judge whole, and judge the last key head of the last batch.

    That is where an offset that overflowed shows. The inputs are drawn on the device and nothing is copied, so that
    memory is that of the implementation; out of memory passes through.
    """
    problem = case.problem
    tensors = make_tensors(case, device, draw_on=device)
    got = run(impl, problem, tensors, direction)
    last = (problem.batch - 1, problem.kv_heads - 1)
    part, inputs = cut(problem, tensors, *last)
    results = {name: cut_result(problem, tensor, *last) for name, tensor in got.items()}
    return Verdict(impl.name, case, direction, str(device), tuple(judge_results(results, part, inputs)))


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
