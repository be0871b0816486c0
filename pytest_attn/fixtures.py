"""The fixtures of the suite, for correctness and for time."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

import pytest

from attn_impls.implementation import Implementation, Unavailable
from attn_impls.problem import Direction, Problem
from pytest_attn.session import AttnSession, attn_session

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from pytest_attn.bench import AttnBench
    from pytest_attn.correctness.case import Case
    from pytest_attn.correctness.judge import Verdict

# Cases without a verdict, of a property that no case had one of, after which it is taken for one that cannot be asked.
_MOST_DROPPED = 100
Check = Callable[["Case", Direction], None]
Found = TypeVar("Found")


class Mismatch(AssertionError):
    """An implementation is wrong on a case, or memory does not hold that; the message is the whole report."""


@pytest.fixture(scope="session")
def attn_impl(request: pytest.FixtureRequest) -> Implementation:
    """The implementation under test, one after the other (choose with --attn-impl)."""
    session = attn_session(request.config)
    return session.selected[request.param]


@pytest.fixture(scope="session")
def attn_cases(
    request: pytest.FixtureRequest, attn_impl: Implementation
) -> Callable[[Direction], SearchStrategy[Case]]:
    """Gives, for a direction, a hypothesis strategy of cases inside the implementation's capabilities."""
    from hypothesis import strategies

    from pytest_attn.correctness.strategies import cases

    session = attn_session(request.config)

    def for_direction(direction: Direction) -> SearchStrategy[Case]:
        if session.case is not None:
            return strategies.just(session.case[0])
        return cases(attn_impl.capabilities, session.device.type, direction)

    return for_direction


@pytest.fixture(scope="session")
def attn_check(request: pytest.FixtureRequest, attn_impl: Implementation) -> Check:
    """Runs the implementation on a case and fails, with the command that repeats it, where it is wrong.

    With ``--attn-isolate`` it runs in a process of its own, whose crash or hang is a failure like any other, except
    that a test does not look for smaller cases that hang, and not for long for those that crash. A lack of memory
    fails, too, and is not called wrong; the first case that it comes on is the one that is shown.
    """
    from pytest_attn.correctness.judge import judge

    session = attn_session(request.config)

    def check(case: Case, direction: Direction) -> None:
        __tracebackhide__ = True
        _fail_if_settled(session)
        judged = judge if session.workers is None else session.workers.judge

        def command() -> str:
            return repeat_command(request.config, attn_impl, case, direction)

        verdict = _found(
            session, attn_impl, case, command, lambda: _verdict(session, judged, attn_impl, case, direction)
        )
        if not verdict.ok:
            _fail(session, verdict.explain(), verdict.raised, command())

    return check


@pytest.fixture
def attn_last_check(request: pytest.FixtureRequest, attn_impl: Implementation) -> Check:
    """Runs the implementation on a problem too large to judge whole, and fails where its last key head is wrong.

    Skips where the device has no room for it.
    """
    from pytest_attn.correctness.large import judge_last
    from pytest_attn.out_of_memory import NoRoom

    session = attn_session(request.config)

    def check(case: Case, direction: Direction) -> None:
        __tracebackhide__ = True
        judged = judge_last if session.workers is None else session.workers.judge_last

        def command() -> str:
            return _repeat_test(request, attn_impl)

        def verdict_or_skip() -> Verdict:
            try:
                return _verdict(session, judged, attn_impl, case, direction)
            except NoRoom as error:
                pytest.skip(f"out of memory: {error}")

        verdict = _found(session, attn_impl, case, command, verdict_or_skip)
        if not verdict.ok:
            _fail(session, verdict.explain(), verdict.raised, command())

    return check


@pytest.fixture(scope="session")
def attn_property_check(request: pytest.FixtureRequest, attn_impl: Implementation) -> Callable[[str, Case], None]:
    """Checks a metamorphic property of the implementation on a case and fails, with the command that repeats it.

    A case for which the property needs a problem outside the capabilities is dropped as hypothesis's ``assume`` does,
    and the test is skipped where the first cases all are such: hypothesis would call that an error.
    """
    from hypothesis import assume

    from pytest_attn.correctness.properties import PROPERTIES, judge_property

    session = attn_session(request.config)
    judged_once: set[tuple[str, str]] = set()
    dropped: Counter[tuple[str, str]] = Counter()

    def check(name: str, case: Case) -> None:
        __tracebackhide__ = True
        _fail_if_settled(session)
        judged = judge_property if session.workers is None else session.workers.judge_property

        rule = PROPERTIES[name]
        case = dataclasses.replace(case, problem=rule.fit(case.problem))

        def command() -> str:
            return repeat_command(request.config, attn_impl, case, rule.direction, property=name)

        verdict = _found(session, attn_impl, case, command, lambda: judged(attn_impl, name, case, session.device))
        test = (attn_impl.name, name)
        if verdict is None:
            dropped[test] += 1
            if test not in judged_once and dropped[test] >= _MOST_DROPPED:
                pytest.skip("every case needs a call outside the capabilities")
        else:
            judged_once.add(test)
        assume(verdict is not None)
        if verdict is not None and not verdict.ok:
            _fail(session, verdict.explain(), verdict.raised, command())

    return check


@pytest.fixture
def attn_claim_check(request: pytest.FixtureRequest, attn_impl: Implementation) -> Callable[[str, Direction], None]:
    """Checks a claim of the implementation for a direction and fails, with the command that repeats it.

    Skips where it is not claimed, or there is nothing to check on this device.
    """
    from pytest_attn.correctness.claims import claim_case, judge_claim, why_not_checked

    session = attn_session(request.config)

    def check(claim: str, direction: Direction) -> None:
        __tracebackhide__ = True
        claims, device_type = attn_impl.capabilities, session.device.type
        case = claim_case(claims, direction, device_type)
        why_not = why_not_checked(claim, claims, direction, device_type)
        if why_not is not None or case is None:
            pytest.skip(f"{attn_impl.name} {why_not}")
        judged = judge_claim if session.workers is None else session.workers.judge_claim

        def command() -> str:
            return _repeat_test(request, attn_impl)

        verdict = _found(
            session, attn_impl, case, command, lambda: judged(attn_impl, claim, case, direction, session.device)
        )
        if not verdict.ok:
            _fail(session, verdict.explain(), verdict.raised, command())

    return check


def _verdict(
    session: AttnSession, judged: Callable[..., Verdict], impl: Implementation, case: Case, direction: Direction
) -> Verdict:
    """Return what ``judged`` finds, for the summary too."""
    from pytest_attn.correctness.running import NotDifferentiable

    __tracebackhide__ = True
    try:
        verdict = judged(impl, case, direction, session.device)
    except Unavailable:
        raise
    except NotDifferentiable as error:
        if impl.declared or impl.name in session.differentiable:
            raise
        pytest.skip(f"{error}, so its gradients are not checked")
    except Exception as error:
        session.end_if_device_is_lost(f"{impl.name} on {case.problem.id}: {type(error).__name__}: {error}")
        raise
    if direction is not Direction.FWD:
        session.differentiable.add(impl.name)
    session.judged(verdict)
    return verdict


def _found(
    session: AttnSession, impl: Implementation, case: Case, command: Callable[[], str], ask: Callable[[], Found]
) -> Found:
    """Return what ``ask`` finds, or skip or fail the test where ``impl`` cannot run at all or there is no memory."""
    from pytest_attn.out_of_memory import NoRoom

    __tracebackhide__ = True
    session.end_if_device_is_lost()
    try:
        return ask()
    except Unavailable as error:
        unavailable(session, impl, error)
    except NoRoom as error:
        no_room = error.with_traceback(None)  # which it has as text
    # Out of the except clause: hypothesis tells failures apart by what they were raised in the midst of.
    where = f"  regime {case.regime}, seed {case.seed}, on {session.device}"
    explanation = f"no verdict on {impl.name}: out of memory on {case.problem.id}\n{where}\n  {no_room}"
    _fail(session, explanation, no_room, command())


def _fail(session: AttnSession, explanation: str, raised: BaseException | None, command: str) -> NoReturn:
    """Fail with the report of one case; ``raised`` is what its verdict holds, or was raised in place of one."""
    __tracebackhide__ = True
    # The frames of an exception that stayed in another process are text.
    report = f"{explanation}\n{getattr(raised, 'frames', '')}  repeat: {command}"
    session.end_if_device_is_lost(report)
    session.settled.failed(report, raised)
    _mismatch(report, raised)


def _fail_if_settled(session: AttnSession) -> None:
    """Fail as the test did before, where it is hypothesis that asks again."""
    from hypothesis import currently_in_test_context

    __tracebackhide__ = True
    if session.settled.report is not None and currently_in_test_context():
        _mismatch(session.settled.report, None)


def _mismatch(report: str, cause: BaseException | None) -> NoReturn:
    """Raise from one line, whatever the reason: hypothesis tells failures apart by where they were raised."""
    __tracebackhide__ = True
    raise Mismatch(report) from cause


def unavailable(session: AttnSession, impl: Implementation, error: Unavailable) -> NoReturn:
    """Skip a test whose implementation turned out not to run here, or fail it when it was asked for by name."""
    session.missing.setdefault(impl.name, str(error))
    if session.explicit:
        raise pytest.fail.Exception(f"{impl.name} cannot run here: {error}", pytrace=False) from None
    raise pytest.skip.Exception(f"{impl.name} cannot run here: {error}") from None


def repeat_command(config: pytest.Config, impl: Implementation, case: Case, direction: Direction, **extra: str) -> str:
    """Return one shell line that repeats the case on this implementation; ``extra`` may hold ``property``."""
    data = {"impl": impl.name, "direction": direction.value, **extra, **case.to_dict()}
    repro = ["--attn-repro", json.dumps(data, separators=(",", ":"))]
    return shlex.join(["pytest", *_where(config), "-m", "correctness", *_how(config), *repro])


def _repeat_test(request: pytest.FixtureRequest, impl: Implementation) -> str:
    """Return one shell line that repeats a test whose case is fixed."""
    config: pytest.Config = request.config
    if config.getoption("pyargs"):
        where = ["--pyargs", f"{request.module.__name__}::{request.node.name}"]
    else:
        where = [f"{os.path.relpath(request.path, config.invocation_params.dir)}::{request.node.name}"]
    marks = ["-m", config.getoption("markexpr")] if config.getoption("markexpr") else []
    return shlex.join(["pytest", *where, *marks, "--attn-impl", impl.name, *_how(config)])


def _how(config: pytest.Config) -> list[str]:
    """Return the options of this run that say where and how implementations run."""
    arguments: list[str] = []
    device = config.getoption("attn_device")
    if device != "auto":
        arguments += ["--attn-device", device]
    if config.getoption("attn_isolate"):
        arguments.append("--attn-isolate")
    if (timeout := config.getoption("attn_timeout")) is not None:
        arguments += ["--attn-timeout", timeout]
    return arguments


def _where(config: pytest.Config) -> list[str]:
    """Return the paths that this run was given, so that the repetition collects the same tests."""
    pyargs = ["--pyargs"] if config.getoption("pyargs") else []
    return [*pyargs, *config.args] if config.args_source is config.ArgsSource.ARGS else []


@pytest.fixture
def attn_problem(request: pytest.FixtureRequest) -> Problem:
    """The problem to time, one after the other (choose with --attn-grid)."""
    return attn_session(request.config).problems[request.param]


@pytest.fixture
def attn_direction(request: pytest.FixtureRequest) -> Direction:
    """The direction to time, one after the other (choose with --attn-direction)."""
    return Direction(request.param)


@pytest.fixture
def attn_bench(request: pytest.FixtureRequest) -> AttnBench:
    """Measures one implementation on one problem in one direction and stores it as a pytest-benchmark row."""
    from pytest_attn.bench import AttnBench

    if not request.config.pluginmanager.has_plugin("benchmark"):
        pytest.fail("timing needs the plugin pytest-benchmark, which is blocked or not installed", pytrace=False)
    return AttnBench(request.getfixturevalue("benchmark"), attn_session(request.config))


@pytest.fixture
def attn_end_to_end(request: pytest.FixtureRequest, attn_bench: AttnBench) -> Callable[[], None]:
    """Measures one implementation's forward on one problem from host memory and back, with one way of copying."""
    from pytest_attn.perf.copies import COPIES

    session = attn_session(request.config)
    if session.isolate:
        pytest.skip("copies are timed in the process of the tests only: leave out --attn-isolate and --attn-timeout")
    name, problem_id, copies = request.param

    def measure() -> None:
        attn_bench.end_to_end(session.selected[name], session.problems[problem_id], COPIES[copies])

    return measure
