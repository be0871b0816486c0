"""Our measurement as a row of pytest-benchmark, so that its JSON, tables and comparison hold device time."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from attn_impls.implementation import Implementation, Unavailable
from attn_impls.problem import Direction, Problem
from pytest_attn import options
from pytest_attn.fixtures import unavailable
from pytest_attn.perf.copies import Copies
from pytest_attn.perf.measure import Measured
from pytest_attn.perf.record import Record
from pytest_attn.session import AttnSession


class AttnBench:
    """Measures, and hands the durations to the stock ``benchmark`` fixture.

    pytest-benchmark has no public way to store durations that were measured elsewhere (its issue 52), so this uses
    ``BenchmarkFixture._make_stats``, unchanged since 2016; :func:`check_benchmark_plugin` refuses a version where it
    is not as expected.
    """

    def __init__(self, benchmark: Any, session: AttnSession) -> None:
        self._benchmark = benchmark
        self._session = session

    def __call__(self, impl: Implementation, problem: Problem, direction: Direction) -> Record:
        """Measure and store; a record that is not ``ok`` ends the test: ``oom`` skips it, ``error`` fails it.

        The first of the cells that share a problem and a direction measures all of them, in turns; the others find
        their result done.
        """
        self._begin()
        return self._report(impl, self._session.outcome(impl, problem, direction))

    def end_to_end(self, impl: Implementation, problem: Problem, copies: Copies) -> Record:
        """Measure and store the forward from host memory and back; what is not ``ok`` ends the test likewise."""
        self._begin()
        return self._report(impl, self._session.end_to_end(impl, problem, copies))

    def _begin(self) -> None:
        # Marks the stock fixture as used: it warns about one that recorded nothing.
        self._benchmark._mode = "attn_bench"
        # Of pytest-xdist, whatever option started it: results would be lost.
        if hasattr(self._session.config, "workerinput"):
            pytest.fail(options.NO_WORKERS, pytrace=False)

    def _report(self, impl: Implementation, outcome: Measured | Unavailable) -> Record:
        session = self._session
        if isinstance(outcome, Unavailable):
            unavailable(session, impl, outcome)
        record = outcome.record
        session.finished(outcome)
        if record.status == "ok":
            self._store(outcome)
            return record
        if record.status == "error":
            sentence = f"{record.impl} on {record.problem.id} {record.direction.value}: {record.reason}"
            if outcome.lost_device:  # and not another one of its group, whose test will say so
                session.end_if_device_is_lost(sentence)
            pytest.fail(sentence, pytrace=False)
        pytest.skip(f"{record.status}: {record.reason}")

    def _store(self, measured: Measured) -> None:
        benchmark, record = self._benchmark, measured.record
        benchmark.group = f"{record.problem.id} {record.direction.value}"
        benchmark.extra_info["attn"] = record.to_dict()
        if benchmark.disabled:
            return
        stats = benchmark._make_stats(1)
        stats.options["timer"] = record.contract
        for duration in measured.durations:
            stats.update(duration)


def check_benchmark_plugin() -> None:
    """Raise ``pytest.UsageError`` when pytest-benchmark is not as :class:`AttnBench` needs it."""
    from pytest_benchmark.fixture import BenchmarkFixture

    make_stats = getattr(BenchmarkFixture, "_make_stats", None)
    if make_stats is None or list(inspect.signature(make_stats).parameters) != ["self", "iterations"]:
        from importlib import metadata

        version = metadata.version("pytest-benchmark")
        raise pytest.UsageError(f"pytest-benchmark {version} is not supported; install pytest-benchmark>=5.2,<6")
