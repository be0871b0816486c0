"""Run an implementation on a case and judge what comes back."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from attn_impls.implementation import Implementation, Unavailable
from attn_impls.problem import Direction
from pytest_attn.correctness.budget import RULES, TensorVerdict
from pytest_attn.correctness.case import Case, Tensors, make_tensors
from pytest_attn.correctness.running import (
    NotDifferentiable,
    WrongOutput,
    check_unchanged,
    copies,
    first_difference,
    run,
)
from pytest_attn.correctness.standard import judge_results
from pytest_attn.correctness.storage import storage_of
from pytest_attn.frames import raised_sentence
from pytest_attn.out_of_memory import is_out_of_memory, with_no_room_told

# Beyond, an extra call to see whether it spoils an earlier one's results costs too much.
_MOST_FLOPS_FOR_A_LATER_CALL = 2**25
# Multiplications of a square matrix of this size on another stream: two milliseconds on an H100, longer than most
# kernels here.
_LOAD_SIZE, _LOAD_TIMES = 2048, 6


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
    element = f"error/budget {tensor.ratio:.3g} (rms {tensor.rms_ratio:.3g})"
    if tensor.ok:
        return f"{tensor.name:4} {element}"
    element += (
        f" at {_place(tensor.index)}: got {tensor.got:.6g}, want {tensor.want:.6g}, "
        f"off by {tensor.error:.3g}, allowed {tensor.budget:.3g}"
    )
    found = []
    if tensor.row_ratio > 1:
        found.append(f"row {_place(tensor.row)} is {tensor.row_ratio:.3g} times its budget off")
    for what, value, budget in (
        ("the whole", tensor.gain, tensor.gain_budget),
        ("the softmax scale", tensor.scale, tensor.scale_budget),
    ):
        if abs(value) > budget:
            found.append(f"{what} seems off by {100 * value:+.3g} %, allowed ±{100 * budget:.3g} %")
    if tensor.nonfinite:
        found.append(f"{tensor.nonfinite} values are not finite")
    # First what is beyond its budget: of a long sum an element may be far off where its row may not.
    within = max(tensor.ratio, tensor.rms_ratio) <= 1
    return f"{tensor.name:4} " + "\n        ".join([*found, element] if within else [element, *found])


def _place(index: Sequence[int]) -> str:
    return f"[{', '.join(str(i) for i in index)}]"


@with_no_room_told
def judge(impl: Implementation, case: Case, direction: Direction, device: torch.device) -> Verdict:
    """Run ``impl`` on ``case`` and compare ``out`` and ``lse`` where it returns one; with backward ``dq, dk, dv`` too.

    On CUDA it runs while another stream is busy, which makes a race that needs bad luck likelier. Where it claims to be
    deterministic, a second run must give the same bits. Where the problem is not large, one more forward call, on other
    values, comes before the backward pass: what earlier calls returned or keep for it must stay as it was.

    Whatever the implementation raises is a verdict, not an exception, but for :class:`attn_impls.Unavailable`, which
    says that it cannot run at all, :class:`.running.NotDifferentiable`, and :class:`.NoRoom`, which pass through.
    """
    tensors = make_tensors(case, device)
    kept = tensors.kept()
    poison(tensors)

    def results() -> dict[str, torch.Tensor]:
        with other_stream_busy(device), new_memory_is_nan(device):
            later = case.problem.flops() <= _MOST_FLOPS_FOR_A_LATER_CALL
            returned = run(impl, case.problem, tensors, direction, with_lse=True, later_call=later)
        got = copies(returned)
        if (what := tensors.changed_since(kept)) is not None:
            raise WrongOutput(f"it changed {what}")
        if impl.capabilities.deterministic:
            again = run(impl, case.problem, tensors, direction, with_lse=True)
            if (name := first_difference(got, again)) is not None:
                raise WrongOutput(f"it claims to be deterministic, and two runs on the same inputs differ in {name}")
            check_unchanged(returned, got)
        return got

    got = verdict_or_results(impl, case, direction, device, results)
    if isinstance(got, Verdict):
        return got
    return Verdict(impl.name, case, direction, str(device), tuple(judge_results(got, case.problem, tensors)))


def verdict_or_results(
    impl: Implementation,
    case: Case,
    direction: Direction,
    device: torch.device,
    results: Callable[[], dict[str, torch.Tensor]],
) -> Verdict | dict[str, torch.Tensor]:
    """Return the ``results`` of ``impl``, or what the exception says of it that they end with.

    Raises what is no verdict: :class:`attn_impls.Unavailable`, :class:`.running.NotDifferentiable`, a lack of memory.
    """
    with warnings.catch_warnings(record=True) as warned:
        # A warning is not a wrong result, even where the user turns warnings into errors for tests of their own.
        warnings.simplefilter("always")
        try:
            return results()
        except (Unavailable, NotDifferentiable):
            raise
        except WrongOutput as error:
            return Verdict(impl.name, case, direction, str(device), broken=str(error))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            sentence = raised_sentence(error)
            sentence += "".join(f"\n  warned: {text}" for text in dict.fromkeys(str(w.message) for w in warned))
            return Verdict(impl.name, case, direction, str(device), broken=sentence, raised=error)


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
