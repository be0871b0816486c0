"""Measure implementations on one problem in one direction: :func:`measure_group`."""

from __future__ import annotations

import contextlib
import functools
import gc
import random
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from attn_impls.implementation import Implementation, Unavailable
from attn_impls.problem import Direction, Problem
from pytest_attn.correctness.running import NotDifferentiable, WrongOutput
from pytest_attn.frames import forget_frames
from pytest_attn.out_of_memory import is_out_of_memory
from pytest_attn.perf.check import Checked, WrongResult, check, check_again, left_alone
from pytest_attn.perf.contract import Contract
from pytest_attn.perf.device import lost_device
from pytest_attn.perf.energy import energy_per_call
from pytest_attn.perf.identity import RanAnother, check_identity, halves, identified_operators, kernels_of, shortened
from pytest_attn.perf.inputs import Inputs
from pytest_attn.perf.instruments import Instruments
from pytest_attn.perf.kineto import Flush, LostTrack, Round, StrayWork, Trace, trace
from pytest_attn.perf.passes import memory_of, timed_round
from pytest_attn.perf.peak import percent_of_peak
from pytest_attn.perf.record import Record, Time
from pytest_attn.perf.rounds import Turns, take_turns
from pytest_attn.perf.stirring import Stirring
from pytest_attn.perf.timers import HostBound, of_the_call
from pytest_attn.text import TIMES, scaled

_MOST_TRACED = 5
_TRACE_S = 0.01
_WARM_S = 0.005
_WARMS_ITSELF_S = 0.02


class Implausible(AssertionError):
    """The timer saw less than the kernels of the call take."""


# Their message is the whole reason; of anything else the type is part of it.
_OURS = (WrongOutput, NotDifferentiable, WrongResult, RanAnother, StrayWork, Implausible)


@dataclass(frozen=True, slots=True)
class Measured:
    """A record and the seconds of each of its rounds (none unless the record is ``ok``).

    ``lost_device`` says that this implementation left the device unusable for the process.
    """

    record: Record
    durations: tuple[float, ...] = ()
    lost_device: bool = False


def measure(
    impl: Implementation, problem: Problem, direction: Direction, device: torch.device, contract: Contract
) -> Record:
    """Return the record of one implementation alone, measured with instruments of its own.

    Raises :class:`~attn_impls.Unavailable` where the implementation cannot run on this machine at all.
    """
    return measure_alone(impl, problem, direction, Instruments(device, contract)).record


def measure_alone(impl: Implementation, problem: Problem, direction: Direction, instruments: Instruments) -> Measured:
    """Return the outcome of a group of one.

    Raises :class:`~attn_impls.Unavailable` where the implementation cannot run on this machine at all.
    """
    (outcome,) = measure_group([impl], problem, direction, instruments)
    if isinstance(outcome, Unavailable):
        raise outcome
    assert outcome is not None, "nobody else could have left the device unusable"
    return outcome


@dataclass
class _Member:
    """One implementation of a group, and how far it has come."""

    impl: Implementation
    record: Record
    checked: Checked | None = None
    turns: Turns | None = None
    unavailable: Unavailable | None = None
    over: bool = False
    undone: bool = False
    lost_device: bool = False

    def outcome(self) -> Measured | Unavailable | None:
        if self.undone:
            return None
        durations = self.turns.durations if self.turns is not None and self.record.status == "ok" else ()
        return self.unavailable or Measured(self.record, tuple(durations), self.lost_device)


def measure_group(
    impls: Sequence[Implementation],
    problem: Problem,
    direction: Direction,
    instruments: Instruments,
    draw: Callable[[Problem, torch.device], Inputs] = Inputs,
) -> list[Measured | Unavailable | None]:
    """Check each of ``impls`` on ``problem``, time those that are right in turns, then take memory and kernel names.

    They share the inputs, which ``draw`` gives for this call. After each check, each turn and each pass that follows,
    these and torch's settings are proved to be as they were: who changed them is an ``error``, and the others go on
    with what was put back. A problem outside the capabilities is ``unsupported``, too little memory is ``oom``, a
    device that kept waiting for the host is ``host_bound``, a median that stayed too uncertain is ``noisy``, and a
    wrong result, another kernel than the declared one or anything raised is ``error``; each with its reason.

    Returns:
        One outcome for each implementation, in order; :class:`~attn_impls.Unavailable` for one that turned out not to
        run on this machine at all, and ``None`` for one that was not finished because another one left the device
        unusable.
    """
    device, contract = instruments.device, instruments.contract
    members = [
        _Member(impl, Record(impl.name, problem, direction, "error", contract.id, impl_version=version))
        for impl in impls
        for version in [impl.version_or_unknown()]
    ]
    for member in members:
        reason = member.impl.capabilities.why_not(problem, direction, device.type)
        if reason is not None:
            member.record, member.over = replace(member.record, status="unsupported", reason=reason), True
    with contextlib.ExitStack() as stack:
        if device.type == "cuda":
            # Events and spinning kernels go to the current device's stream.
            stack.enter_context(torch.cuda.device(device))
        # Not an error where the user turns warnings into errors for tests of their own.
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        _Group(members, problem, direction, instruments, draw).measure()
    return [member.outcome() for member in members]


class _Group:
    """The steps of a measurement, each for all members before the next."""

    def __init__(
        self,
        members: list[_Member],
        problem: Problem,
        direction: Direction,
        instruments: Instruments,
        draw: Callable[[Problem, torch.device], Inputs],
    ) -> None:
        self._draw = draw
        self._members = members
        self._problem = problem
        self._direction = direction
        self._instruments = instruments
        self._device = instruments.device
        self._spoiled = False

    def measure(self) -> None:
        if not any(self._waiting()):
            return
        inputs: Inputs | None = None
        for member in self._waiting():
            with self._guard(member):
                # Drawn for the first, and again where there was no memory for it or somebody changed it.
                if inputs is None or inputs.changed() is not None:
                    inputs = self._draw(self._problem, self._device)
                member.checked = check(member.impl, self._problem, inputs, self._direction, self._device)
        if inputs is None:
            return
        self._time(inputs)
        for member in self._waiting():
            with self._guard(member):
                if inputs.changed() is not None:  # by somebody who failed for it
                    inputs.renew(seed=1)
                with left_alone(inputs):
                    record = self._finished(member, inputs)
                member.record, member.over = record, True

    def _waiting(self) -> Iterator[_Member]:
        """Give those who are not over, looked at one by one: who loses the device ends it for those behind."""
        return (member for member in self._members if not member.over)

    @contextlib.contextmanager
    def _guard(self, member: _Member) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if not of_the_call(error):
                raise
            self._fail(member, error)

    def _fail(self, member: _Member, error: BaseException) -> None:
        member.over = True
        if isinstance(error, Unavailable):
            member.unavailable = error
        else:
            status, reason = _status(error)
            member.record = replace(member.record, status=status, reason=reason)
        forget_frames(error)
        gc.collect()  # some frames are kept in a cycle
        if self._lost():
            member.lost_device = True
            for other in self._waiting():
                other.over = other.undone = True
        elif self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _round(self, member: _Member, inputs: Inputs) -> Callable[[], Callable[[], object]]:
        return timed_round(member.impl, self._problem, inputs.tensors, self._direction)

    def _time(self, inputs: Inputs) -> None:
        inputs.standards.clear()  # the implementations are to have the memory
        members = list(self._waiting())
        telemetry = self._instruments.telemetry
        stirring = Stirring(inputs.tensors)
        sources = [self._instruments.timer.source(stirring.rounds(self._round(member, inputs))) for member in members]
        shuffle = random.Random(self._problem.id)
        watch = (lambda index: None) if telemetry is None else telemetry.watch
        around = functools.partial(self._turn, inputs, stirring)
        everyone = take_turns(sources, self._instruments.contract, shuffle, watch, self._lost, around)
        for index, (member, turns) in enumerate(zip(members, everyone, strict=True)):
            member.turns = turns
            if telemetry is not None:
                member.record = replace(member.record, telemetry=telemetry.collect(index))
        # First whoever lost the device: that ends it for the others, and nobody is blamed who failed before.
        for member, turns in sorted(zip(members, everyone, strict=True), key=lambda each: not each[1].lost):
            if turns.error is not None and not member.over:
                with self._guard(member):
                    # An eager fall-back is all launches: that something else ran is the better reason.
                    if isinstance(turns.error, HostBound):
                        inputs.renew(seed=1)
                        with left_alone(inputs):
                            self._identify(member, inputs, seconds=None)
                    raise turns.error
        if any(self._waiting()):
            inputs.renew(seed=1)

    @contextlib.contextmanager
    def _turn(self, inputs: Inputs, stirring: Stirring) -> Iterator[None]:
        """Blame one turn for a change of the inputs or of torch's settings, and leave neither to the next one."""
        if self._spoiled:  # drawn anew not before the call that failed has given back its memory
            inputs.renew(seed=0)
            stirring.forget()
            self._spoiled = False
        try:
            with left_alone(inputs):
                yield
                stirring.put_back()
        except BaseException:
            self._spoiled = True
            raise

    def _lost(self) -> bool:
        return lost_device(self._device) is not None

    def _finished(self, member: _Member, inputs: Inputs) -> Record:
        """Return the record of what was timed, with what is taken after the timing."""
        assert member.turns is not None
        assert member.checked is not None
        contract = self._instruments.contract
        time_s = summary(member.turns.durations, member.turns.known_to)
        memory, results = memory_of(
            member.impl, self._problem, inputs.tensors, self._direction, self._device, member.checked.output_bytes
        )
        # On a CPU that call was made under the profiler, and its caller could tell.
        plain = results if self._device.type == "cuda" else None
        del results
        check_again(member.impl, self._problem, inputs, self._direction, self._device, plain)
        del plain
        kernels, kernel_s, note = self._identify(member, inputs, time_s.median)
        # Only now: noise is no reason to keep silent about a wrong result or another kernel.
        if time_s.ci is not None and time_s.ci > contract.noisy_above:
            known, wanted = f"±{100 * time_s.ci:.0f} %", f"±{100 * contract.noisy_above:.0f} %"
            middle = scaled(time_s.median, TIMES)
            raise _Noisy(f"after {time_s.n} rounds the median, {middle}, is known to {known}, not {wanted}")
        host_s = member.turns.source.host_seconds()
        record = replace(
            member.record,
            status="ok",
            time_s=time_s,
            memory=memory,
            host_us=None if host_s is None else 1e6 * host_s,
            compile_s=member.checked.compile_s,
            kernel_s=kernel_s,
            kernels=None if kernels is None else shortened(kernels),
            note=note,
            accuracy=None if member.checked.error_ratio is None else {"error_ratio": member.checked.error_ratio},
        )
        telemetry = dict(record.telemetry or {})
        if (joules := self._energy(member, inputs)) is not None:
            telemetry["energy_j"] = joules
        nominal, at_clock = percent_of_peak(record.tflops, self._device, self._problem.dtype, telemetry.get("sm_mhz"))
        return replace(record, telemetry=telemetry or None, percent_of_peak=nominal, percent_of_peak_at_clock=at_clock)

    def _energy(self, member: _Member, inputs: Inputs) -> float | None:
        telemetry, loop_s = self._instruments.telemetry, self._instruments.contract.energy_s
        if telemetry is None or not loop_s or self._direction is Direction.BWD:
            return None
        return energy_per_call(
            self._round(member, inputs), lambda: torch.cuda.synchronize(self._device), telemetry.joules, loop_s
        )

    def _identify(
        self, member: _Member, inputs: Inputs, seconds: float | None
    ) -> tuple[list[dict[str, object]] | None, float | None, str | None]:
        """Return the kernels of a call, their summed seconds, and what to say where those do not fit ``seconds``.

        Without kernels (``None``) what ran is not proved, and the sentence says why.

        Raises :class:`RanAnother`, :class:`StrayWork` or :class:`Implausible` where the call is not what was timed.
        """
        if (traced_by := self._instruments.traced_by) is not None:
            return None, None, traced_by.note(member.record)
        prepare, flush = self._round(member, inputs), self._instruments.flush
        both = self._direction is Direction.FWD_BWD
        alone = halves(member.impl, self._problem, inputs.tensors) if both else {}
        if flush is None:
            for half in alone.values():
                identified_operators(half, member.impl)
            return identified_operators(prepare, member.impl), None, None
        times = max(1, min(_MOST_TRACED, int(_TRACE_S / (seconds or _TRACE_S))))
        # One session for all: each takes the profiler milliseconds.
        rounds = [Round(half, direction is Direction.BWD) for direction, half in alone.items()]
        rounds += [Round(prepare, self._direction is Direction.BWD)] * times
        warm_s = _WARM_S if (seconds or 0.0) < _WARMS_ITSELF_S else 0.0
        try:
            traces = _trace_again_if_lost(rounds, flush, warm_s)
        except LostTrack as lost:
            return None, None, f"what ran is not proved: {lost}"
        if not traces:
            return None, None, "what ran is not proved: torch.profiler reported no kernels"
        for _ in alone:
            check_identity(kernels_of([traces.pop(0)]), member.impl)
        # The inputs were the same for all these calls, so that here a remembered result shows.
        idle = sum(not traced.kernels for traced in traces)
        if idle and inputs.tensors.q.numel():
            raise RanAnother(f"ran no kernel in {idle} of {len(traces)} calls")
        kernels = kernels_of(traces)
        check_identity(kernels, member.impl)
        kernel_s = median(traced.kernel_s for traced in traces)
        if seconds is None:
            return kernels, kernel_s, None
        in_parts = inputs.tensors.q.device.type != self._device.type  # from host memory and back, on streams of ours
        return kernels, kernel_s, disagreement(seconds, traces, in_parts=in_parts)


def _trace_again_if_lost(rounds: Sequence[Round], flush: Flush, warm_s: float) -> list[Trace]:
    with contextlib.suppress(LostTrack):
        return trace(rounds, flush, warm_s=warm_s)
    return trace(rounds, flush, warm_s=warm_s)


class _Noisy(Exception):
    """The median stayed too uncertain; the message says how uncertain."""


def disagreement(seconds: float, traces: Sequence[Trace], *, in_parts: bool = False) -> str | None:
    """Return a sentence where the timer and the profiler tell different stories of one call, else ``None``.

    They may differ by 2 %, a microsecond, and two more for each kernel after the first: about what the device needs
    between two kernels of one stream.

    Raises :class:`Implausible` where the timer saw less than half of the time in which kernels ran. Gaps between them
    tell nothing: nothing hides the launches of a call that is traced. So a trace runs the parts of a call that we put
    on streams of their own (``in_parts``) one after the other, and of those the kernels of one stream count.
    """
    count = median(len(traced.kernels) for traced in traces)
    kernel_s = median(traced.kernel_s for traced in traces)
    busy_s = median(traced.stream_s if in_parts else traced.busy_s for traced in traces)
    if seconds < busy_s / 2 - 1e-6:
        raise Implausible(f"the timer saw {1e6 * seconds:.1f} µs of a call whose kernels take {1e6 * busy_s:.1f} µs")
    allowed = 0.02 * seconds + 1e-6 + 2e-6 * max(0, count - 1)
    if abs(seconds - kernel_s) <= allowed:
        return None
    timed, summed = f"the timer says {1e6 * seconds:.1f} µs", f"{1e6 * kernel_s:.1f} µs"
    if count <= 1:
        return f"{timed}, its kernel takes {summed} under the profiler"
    return f"{timed}, its {count:.0f} kernels take {summed} under the profiler: " + (
        "the device stood idle between them" if seconds > kernel_s else "they overlap, or ran slower there"
    )


def summary(durations: Sequence[float], known_to: float) -> Time:
    """Return median, p10, p90, their number and to what share of itself the median is known."""
    tensor = torch.tensor(durations, dtype=torch.float64)
    p10, middle, p90 = torch.quantile(tensor, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    return Time(middle, p10, p90, len(durations), known_to)


def _status(error: BaseException) -> tuple[str, str]:
    """Return the status and the reason that ``error`` stands for."""
    if isinstance(error, HostBound):
        return "host_bound", str(error)
    if isinstance(error, _Noisy):
        return "noisy", str(error)
    if is_out_of_memory(error):
        return "oom", _asked_for(error)
    sentence = str(error).strip().partition("\n")[0] or "without a message"
    return "error", sentence if isinstance(error, _OURS) else f"{type(error).__name__}: {sentence}"


def _asked_for(error: BaseException) -> str:
    """Return "out of memory", with the size that was asked for where the message tells it."""
    text = str(error)
    found = re.search(r"allocate ([\d.]+ ?[KMGT]?i?B)", text) or re.search(r"allocate (\d+ bytes)", text)
    return f"out of memory: asked for {found.group(1)}" if found else "out of memory"
