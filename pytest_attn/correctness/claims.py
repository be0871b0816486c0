"""What :class:`~attn_impls.Capabilities` claim about how an implementation can be called: a check for each claim.

``traceable``: ``torch.compile(fullgraph=True)`` takes the call without a graph break, and on fake tensors it gives the
shape, dtype and strides that it gives on real ones. The backend is ``aot_eager``: what is checked is the tracing, of
forward and backward, not what a compiler makes of it. ``capturable``: a CUDA graph takes the call, and a replay
computes with what the inputs hold by then. Results are judged under the same budget as any other
(:mod:`pytest_attn.correctness.budget`). That a deterministic implementation is one, :mod:`~.judge` looks at.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import torch
from torch._dynamo.exc import TorchDynamoException
from torch._subclasses.fake_tensor import FakeTensorMode

from attn_impls.implementation import Capabilities, Implementation, Unavailable
from attn_impls.problem import CAUSAL, FULL, Direction, Problem
from pytest_attn.correctness.case import Case, Tensors, make_tensors
from pytest_attn.correctness.fixed import fitted
from pytest_attn.correctness.judge import Verdict
from pytest_attn.correctness.running import run
from pytest_attn.correctness.standard import judge_results
from pytest_attn.correctness.storage import STORAGES
from pytest_attn.frames import raised_sentence
from pytest_attn.out_of_memory import is_out_of_memory, with_no_room_told

# From what asks the most to what the modest can do. More than one tile, with a ragged tail.
_PROBLEMS = (
    Problem(2, 4, 2, 97, 161, 64, "bf16", CAUSAL),
    Problem(2, 4, 4, 161, 161, 64, "bf16", CAUSAL),
    Problem(2, 4, 4, 160, 160, 64, "bf16", FULL),
)
_WARM_UPS = 3


class Unkept(AssertionError):
    """A claim does not hold; the message says what was found instead."""


@dataclass(frozen=True, slots=True)
class ClaimVerdict:
    """What was found for one claim of an implementation; ``broken`` is the problem, ``None`` where the claim holds."""

    impl: str
    claim: str
    case: Case
    direction: Direction
    device: str
    broken: str | None = None
    raised: BaseException | None = field(default=None, compare=False)

    @property
    def ok(self) -> bool:
        """Whether the claim holds."""
        return self.broken is None

    def explain(self) -> str:
        """Say in a few lines who claims what, and what was found."""
        return (
            f"{self.impl} claims to be {self.claim} and is not, on {self.case.problem.id}\n"
            f"  regime {self.case.regime}, seed {self.case.seed}, {self.direction.value}, on {self.device}\n"
            f"  {self.broken}"
        )


def why_not_checked(name: str, capabilities: Capabilities, direction: Direction, device_type: str) -> str | None:
    """Return why there is nothing to check of the claim ``name``, or ``None``."""
    if not getattr(capabilities, name):
        return f"does not claim to be {name}"
    if name == "capturable" and device_type != "cuda":
        return "is capturable on a CUDA device only"
    if direction is not Direction.FWD and not capabilities.backward:
        return "has no backward"
    return None if claim_case(capabilities, direction, device_type) else "takes none of the problems for this check"


def claim_case(capabilities: Capabilities, direction: Direction, device_type: str) -> Case | None:
    """Return the first case for a claim's check that the capabilities include, or ``None``."""
    head_dims = capabilities.head_dims
    step = head_dims.multiple_of
    lowest = -(-head_dims.low // step) * step
    for problem, head_dim in product(_PROBLEMS, (64, lowest)):
        case = Case(replace(problem, head_dim=head_dim), seed=1)
        if (found := fitted(case, capabilities, device_type, direction)) is not None:
            return found
    return None


@with_no_room_told
def judge_claim(
    impl: Implementation, name: str, case: Case, direction: Direction, device: torch.device
) -> ClaimVerdict:
    """Check the claim ``name``, a key of :data:`CLAIMS`, on ``case``.

    What the implementation raises is a verdict; :class:`attn_impls.Unavailable` and :class:`.NoRoom` pass through.
    """
    verdict = ClaimVerdict(impl.name, name, case, direction, str(device))
    with warnings.catch_warnings():
        # A warning is not a broken claim, even where the user turns warnings into errors for tests of their own.
        warnings.simplefilter("ignore")
        try:
            CLAIMS[name](impl, case, direction, device)
        except Unavailable:
            raise
        except Unkept as error:
            return replace(verdict, broken=str(error))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return replace(verdict, broken=raised_sentence(error), raised=error)
    return verdict


def _traceable(impl: Implementation, case: Case, direction: Direction, device: torch.device) -> None:
    tensors = make_tensors(case, device)
    real = run(impl, case.problem, tensors, direction)  # builds what must be built, outside of the trace
    _check_fake(impl, case.problem, tensors, direction, real)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        result: torch.Tensor = impl.fn(q, k, v, problem)
        return result

    torch.compiler.reset()
    try:
        compiled = torch.compile(call, fullgraph=True, dynamic=False, backend="aot_eager")
        got = run(replace(impl, fn=compiled), case.problem, tensors, direction)
    except TorchDynamoException as error:  # it names the line itself, and its frames are torch's
        if is_out_of_memory(error):
            raise
        raise Unkept(f"torch.compile raised {type(error).__name__}: {error}") from None
    finally:
        torch.compiler.reset()
    _check_results("compiled", impl, case, direction, tensors, got)


def _check_fake(
    impl: Implementation, problem: Problem, tensors: Tensors, direction: Direction, real: dict[str, torch.Tensor]
) -> None:
    with FakeTensorMode() as mode:
        fakes = Tensors(*(mode.from_tensor(x) for x in (tensors.q, tensors.k, tensors.v, tensors.dout)))
        fake = run(impl, problem, fakes, direction)
    for name, tensor in real.items():
        have, want = _strides(fake[name]), _strides(tensor)
        if have != want:
            raise Unkept(f"on fake tensors {name} has the strides {have}, on real ones {want}")


def _strides(tensor: torch.Tensor) -> tuple[int | None, ...]:
    """Return the strides, ``None`` where the dimension is 1 and the stride means nothing."""
    return tuple(None if size == 1 else step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _capturable(impl: Implementation, case: Case, direction: Direction, device: torch.device) -> None:
    static = make_tensors(case, device)
    # Capture needs warmed-up libraries and autograd, on a stream that is not the default one.
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            run(impl, case.problem, static, direction)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(impl, case.problem, static, direction)
    fresh = make_tensors(replace(case, seed=case.seed + len(STORAGES)), device)  # of the same storage
    for old, new in zip(_all(static), _all(fresh), strict=True):
        old.copy_(new)
    graph.replay()
    torch.cuda.synchronize(device)
    _check_results("replayed", impl, case, direction, fresh, got)


def _all(tensors: Tensors) -> Sequence[torch.Tensor]:
    return tensors.q, tensors.k, tensors.v, tensors.dout


def _check_results(
    how: str, impl: Implementation, case: Case, direction: Direction, tensors: Tensors, got: dict[str, torch.Tensor]
) -> None:
    judged = tuple(judge_results(got, case.problem, tensors))
    verdict = Verdict(impl.name, case, direction, str(tensors.q.device), judged)
    if not verdict.ok:
        raise Unkept("\n".join([f"{how}, its results are wrong:", *verdict.findings()]))


CLAIMS: dict[str, Callable[[Implementation, Case, Direction, torch.device], None]] = {
    "traceable": _traceable,
    "capturable": _capturable,
}
"""The check of each claim, by the name of its flag in :class:`~attn_impls.Capabilities`; raises where it fails."""
