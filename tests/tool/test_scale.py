"""Ten thousand cells: what they cost to collect, to keep and to write.

Bounds are three times what is promised, in processor time, since other work on the machine must not fail a test.
"""

from __future__ import annotations

import gc
import itertools
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cpuinfo
import pytest

from attn_impls import Direction, Implementation, Problem, discover
from attn_impls.grids import load_grid
from pytest_attn.perf.measure import Measured
from pytest_attn.perf.record import Memory, Record, Time
from pytest_attn.session import AttnSession, attn_session
from tests.tool.nested import ROOT, lay_out

pytest_plugins = ["pytester"]

TEN_THOUSAND = """
[[problem]]
batch = [1, 2, 4, 8, 16, 32, 64]
heads = [4, 8, 16, 32, 64]
seq = [128, 256, 512, 1024, 2048, 4096, 8192]
head_dim = [32, 64, 128, 256]
dtype = "fp32"
mask = ["full", "causal"]
"""
HUNDREDS = """
[[problem]]
batch = [1, 2, 4, 8, 16]
heads = [4, 8, 16, 32, 64]
seq = [128, 256]
head_dim = 64
dtype = "fp32"
mask = ["full", "causal"]
"""
TWO = ("--attn-impl", "naive", "--attn-impl", "sdpa-math")
COLLECT_S = 3.0
WRITE_S = 10.0


def synthetic(impl: str, problem: Problem, direction: Direction, contract: str) -> Measured:
    """What a measurement of 50 rounds leaves, kernels and telemetry included."""
    durations = tuple(1e-3 + 1e-6 * ((7 * i) % 50) for i in range(50))
    record = Record(
        impl,
        problem,
        direction,
        "ok",
        contract,
        time_s=Time(1.0e-3, 1.0e-3, 1.1e-3, 50),
        memory=Memory(2**30, 2**20, None),
        kernels=({"name": "void attention_forward_kernel<128, 64, true>(Params)", "share": 1.0},),
        telemetry={"sm_mhz": 1755.0, "power_w": 512.0, "temp_c": 55.0, "clock_reasons": [], "energy_j": 0.5},
    )
    return Measured(record, durations)


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """Import what registers operators with torch before a nested run does: it forgets what it imports itself."""
    discover()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpuinfo, "get_cpu_info", dict)  # pytest-benchmark's takes a second a run


@pytest.fixture
def no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(session: AttnSession, impl: Implementation, problem: Problem, direction: Direction) -> Measured:
        return synthetic(impl.name, problem, direction, session.contract.id)

    monkeypatch.setattr(AttnSession, "outcome", outcome)


class Stopwatch:
    """Processor seconds of one hook, with all that it calls."""

    def __init__(self) -> None:
        self.collection_s = self.finish_s = 0.0

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self) -> Iterator[None]:
        start = time.process_time()
        result = yield
        self.collection_s = time.process_time() - start
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Iterator[None]:
        start = time.process_time()
        yield
        self.finish_s = time.process_time() - start


def test_collecting_ten_thousand_cells(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "perf")
    Path("ten_thousand.toml").write_text(TEN_THOUSAND)
    watch = Stopwatch()
    arguments = ("-p", "no:cacheprovider", "-qq", "--collect-only", "-m", "perf", *TWO)
    result = pytester.inline_run(*arguments, "--attn-grid=ten_thousand.toml", plugins=[watch])
    assert result.ret == 0
    (report,) = [call.items for call in result.getcalls("pytest_report_collectionfinish")]
    assert len(report) == 7 * 5 * 7 * 4 * 2 * len(Direction) * 2 > 10_000
    assert watch.collection_s < 3 * COLLECT_S


class OneTestManyRecords:
    """Fills pytest-benchmark's session and ours from one test: ten thousand tests would take longer than the rest."""

    @pytest.fixture
    def fill(self, benchmark: Any, request: pytest.FixtureRequest) -> None:
        benchmark._mode = "filled"  # marks it as used
        session = attn_session(request.config)
        cells = [(problem, d, impl) for problem in session.problems.values() for d in Direction for impl in ("a", "b")]
        for problem, direction, impl in cells[:10_000]:
            measured = synthetic(impl, problem, direction, session.contract.id)
            session.records.append(measured.record)
            benchmark.extra_info = {"attn": measured.record.to_dict()}
            stats = benchmark._make_stats(1)
            for duration in measured.durations:
                stats.update(duration)


def test_writing_ten_thousand_records(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_fill(fill):\n    pass\n")
    Path("ten_thousand.toml").write_text(TEN_THOUSAND)
    shutil.copy(ROOT / "conftest.py", pytester.path)
    watch = Stopwatch()
    arguments = ("-p", "no:cacheprovider", "-q", *TWO, "--attn-grid=ten_thousand.toml", "--benchmark-json=run.json")
    result = pytester.inline_run(*arguments, plugins=[watch, OneTestManyRecords()])
    assert result.ret == 0
    data = json.loads(Path("run.json").read_text())
    assert len(data["benchmarks"]) == 10_000
    assert len(data["benchmarks"][-1]["stats"]["data"]) == 50
    assert watch.finish_s < 3 * WRITE_S


@pytest.mark.usefixtures("no_measurement")
def test_memory_of_a_record_does_not_grow_with_the_run(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "perf")
    Path("hundreds.toml").write_text(HUNDREDS)
    objects: list[int] = []

    class Count:
        done = 0

        def pytest_runtest_logfinish(self) -> None:
            self.done += 1
            if self.done % 200 == 0:
                gc.collect()
                objects.append(len(gc.get_objects()))

    arguments = ("-p", "no:cacheprovider", "-q", "-m", "perf", *TWO, "--attn-grid=hundreds.toml")
    result = pytester.inline_run(*arguments, plugins=[Count()])
    assert result.ret == 0
    first, *later = (b - a for a, b in itertools.pairwise(objects))
    assert len(load_grid("hundreds.toml")) == 100
    assert len(later) == 1
    assert all(growth <= 1.1 * first for growth in later)
    assert first < 200 * 200  # objects a record: a few rows of numbers, not its tensors
