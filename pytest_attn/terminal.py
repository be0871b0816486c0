"""What the user sees: the header, a progress line for timed cells, and the summary."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from _pytest._code.code import TerminalRepr
from _pytest._io import TerminalWriter

from pytest_attn import options
from pytest_attn.fixtures import Mismatch
from pytest_attn.frames import own_frames
from pytest_attn.parametrize import cell
from pytest_attn.perf.record import Record
from pytest_attn.session import Accuracy, AttnSession, attn_session, existing_session
from pytest_attn.text import TIMES, scaled, table


def header(config: pytest.Config, items: Sequence[pytest.Item]) -> list[str]:
    """Return the lines on device, versions and implementations; none when no test is ours."""
    session = existing_session(config)
    if session is None or not any("attn_impl" in getattr(item, "fixturenames", ()) for item in items):
        return []
    run = session.run()
    machine, environment = run.machine, run.environment
    parts = [f"attn: {machine['device']}"]
    if machine["device_type"] == "cuda":
        driver = machine["driver"] or "unknown, and no telemetry (nvidia-ml-py is not installed)"
        parts += [f"driver {driver}", f"CUDA {environment['cuda']}"]
    else:
        parts.append(f"{machine['threads']} threads")
    parts += [f"torch {environment['torch']}", f"contract {session.contract.id}"]
    here = [name for name in session.selected if name not in session.missing]
    lines = [", ".join(parts), f"attn: implementations {', '.join(here) or 'none'}"]
    missing = {name: why for name, why in session.missing.items() if name in session.selected}
    reasons: dict[str, list[str]] = {}
    for name, why in (missing | session.registry.broken).items():
        reasons.setdefault(why, []).append(name)
    lines += [f"attn: missing {', '.join(names)}: {why}" for why, names in reasons.items()]
    return lines


class Explanation(TerminalRepr):
    """A failure's report: the message of a :class:`~pytest_attn.fixtures.Mismatch` and the user's own frames."""

    def __init__(self, mismatch: Mismatch) -> None:
        self.text = str(mismatch)
        # Where the one-line summary of a failure looks.
        self.reprcrash = SimpleNamespace(message=self.text.partition("\n")[0])
        cause = mismatch.__cause__
        self.frames = "" if cause is None else own_frames(cause)

    def toterminal(self, tw: TerminalWriter) -> None:
        """Write the frames, then the explanation, so that it stands last."""
        if self.frames:
            tw.line(self.frames.rstrip())
        first, _, rest = self.text.partition("\n")
        tw.line(first, red=True, bold=True)
        tw.line(rest)


class Progress:
    """One line for each timed cell, with what is left; other tests keep pytest's own output."""

    def __init__(self, config: pytest.Config, reporter: Any) -> None:
        self._config = config
        self._reporter = reporter
        self._cells: dict[str, str] = {}
        self._width = 0
        self._done = 0
        self._began = 0.0
        self._reported = 0
        self._over = False

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Count the timed cells."""
        cells = [(item.nodeid, params) for item in session.items if (params := cell(item)) is not None]
        width = max((len(params["attn_impl"]) for _, params in cells), default=0)
        for nodeid, params in cells:
            problem = f"{params['attn_problem']} {params['attn_direction']}"
            self._cells[nodeid] = f"{params['attn_impl']:{width}} {problem}"
        self._width = max(map(len, self._cells.values()), default=0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """On a terminal, say what is running now; the result overwrites it."""
        if nodeid not in self._cells:
            return
        # The stock reporter would start a line with the file's name for each cell.
        self._reporter.currentfspath = self._config.rootpath / nodeid.partition("::")[0]
        self._began = self._began or time.monotonic()
        if self._reporter.isatty:
            self._reporter.rewrite(f"{self._position(self._done + 1)} {self._cells[nodeid]} ...", erase=True)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the line of a cell that is done."""
        if report.nodeid in self._cells and (report.when == "call" or (report.when == "setup" and not report.passed)):
            self._done += 1
            self._line(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Take the dot of a timed cell away, since it has a line; leave the word to pytest's own summary."""
        if report.nodeid not in self._cells or self._over or (report.when != "call" and report.passed):
            return None
        return report.outcome, "", ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """From here on pytest asks for the words of its summary."""
        self._over = True

    def _line(self, report: pytest.TestReport) -> None:
        session = attn_session(self._config)
        fresh = session.records[self._reported :]
        self._reported = len(session.records)
        result = describe(fresh[-1]) if fresh else report.outcome
        text = f"{self._position(self._done)} {self._cells[report.nodeid]:{self._width}} {result}"
        self._reporter.currentfspath = None
        if self._reporter.isatty:
            self._reporter.rewrite(text, erase=True)
            text = ""
        self._reporter.write_line(text)

    def _position(self, number: int) -> str:
        total = len(self._cells)
        text = f"{number:>{len(str(total))}}/{total}"
        if self._done:
            left = (time.monotonic() - self._began) / self._done * (total - self._done)
            text += f", {int(left) // 60}:{int(left) % 60:02} left"
        return f"[{text}]"


def describe(record: Record) -> str:
    """Return a record's numbers, or its status and reason, in a few words."""
    if record.time_s is None:
        return f"{record.status}: {record.reason}"
    parts = [scaled(record.time_s.median, TIMES)]
    tflops = record.tflops or 0.0
    parts.append(f"{tflops:.3g} TFLOP/s" if tflops >= 0.1 else f"{1e3 * tflops:.3g} GFLOP/s")
    if record.memory is not None:
        parts.append(scaled(float(record.memory.peak_bytes), ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))))
    return "  ".join(f"{part:>12}" for part in parts)


def summarize(reporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the accuracy of each implementation, and the count of timed cells by status."""
    session = existing_session(config)
    if session is None:
        return
    if session.accuracy:
        reporter.section("attention: worst error over budget by rule (1 is the limit)")
        for line in accuracy_table(session.accuracy):
            reporter.write_line(line)
    if session.records or session.unsupported:
        _summarize_records(reporter, config, session)


def accuracy_table(accuracies: Mapping[str, Accuracy]) -> list[str]:
    """Return a line for each implementation: the worst ratio by each rule, its cases, where the worst was."""
    rows = [
        (name, *(_ratio(ratio) for ratio in accuracy.ratios.values()), str(accuracy.cases), accuracy.where)
        for name, accuracy in accuracies.items()
    ]
    rules = next(iter(accuracies.values())).ratios
    return table(("", *rules, "cases", "worst at"), rows, right=range(1, len(rules) + 2))


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.3g}"


def _summarize_records(reporter: pytest.TerminalReporter, config: pytest.Config, session: AttnSession) -> None:
    counts = ", ".join(f"{count} {status}" for status, count in session.run().statuses().most_common())
    reporter.section("attention: records")
    reporter.write_line(f"grid {session.grid_name}: {counts}")
    path, benchmarks = options.json_path(config), getattr(config, "_benchmarksession", None)
    if session.unwritten is not None:
        reporter.write_line(session.unwritten, red=True)
    elif path is not None and benchmarks is not None and not benchmarks.disabled:
        reporter.write_line(f"charts: attn report {path} -o attn-report")
    else:
        reporter.write_line("to keep them: pytest -m perf --benchmark-json=run.json")
