"""What a record costs beyond its timed rounds: a pytest plugin that clocks the steps of a perf run.

``PYTHONPATH=reports/h100/timing ATTN_COST=cost.json pytest -p cost -m perf --attn-grid fa-paper ...`` writes
``cost.json`` at the end, beside whatever else the run writes.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cells import commit

from attn_impls import Direction, Implementation, Problem
from pytest_attn import groups
from pytest_attn.perf import check, inputs, measure, rounds, stirring
from pytest_attn.perf.instruments import Instruments
from pytest_attn.perf.record import Record

Outcomes = list[Any]


def clocked(spent: Counter[str], name: str, function: Any) -> Any:
    """Clock the host. To wait for the device, too, would be a cost of this plugin; most of these steps do."""

    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            spent[name] += time.perf_counter() - begin

    return wrapper


class Cost:
    """Seconds by step, in all and of each problem."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.by_problem: dict[str, Counter[str]] = {}
        self.records: list[Record] = []
        self.instruments: dict[str, object] = {}
        self._group = clocked(self.spent, "all", measure.measure_group)
        self._begin = 0.0

    def watch(self) -> None:
        """Clock the steps from now on."""
        for module, function, name in (
            (rounds, "_timed_batch", "timed rounds"),
            (rounds, "_warm_up", "warm-up"),
            (inputs, "make_tensors", "inputs"),
            (check, "_judged", "oracle"),
            (check, "_standard", "of it what is shared"),
            (check, "_timed_run", "two calls"),
            (measure, "memory_of", "memory"),
            (measure, "trace", "trace"),
            (inputs.Inputs, "changed", "looking at the inputs"),
            (stirring.Stirring, "put_back", "putting the inputs back"),
        ):
            setattr(module, function, clocked(self.spent, name, getattr(module, function)))
        groups.measure_group = self.group

    def group(
        self, impls: list[Implementation], problem: Problem, direction: Direction, instruments: Instruments
    ) -> Outcomes:
        """Do as ``measure_group``, and keep what was spent."""
        self._begin = self._begin or time.perf_counter()
        before = self.spent.copy()
        outcomes: Outcomes = self._group(impls, problem, direction, instruments)
        measured = [outcome.record for outcome in outcomes if isinstance(outcome, measure.Measured)]
        self.records += [record for record in measured if record.status != "unsupported"]
        self.by_problem.setdefault(problem.id, Counter()).update(self.spent - before)
        self.instruments = instruments.describe()
        return outcomes

    def result(self) -> dict[str, object]:
        """Return what is written, with every record's share in milliseconds."""
        count = len(self.records)
        statuses = Counter(record.status for record in self.records)
        compiling = sum(record.compile_s or 0.0 for record in self.records)
        counts = Counter(record.problem.id for record in self.records)
        # The trace of a record against its own time: it comes after the rounds, and after what the host did meanwhile.
        apart = sorted(
            (abs(record.time_s.median / record.kernel_s - 1) if record.time_s and record.kernel_s else 0.0, record.key)
            for record in self.records
            if record.kernels is not None and sum(kernel["count"] for kernel in record.kernels) == 1
        )

        def each(spent: Counter[str], count: int) -> dict[str, float]:
            return {name: round(1e3 * seconds / count, 2) for name, seconds in sorted(spent.items())}

        return {
            "commit": commit(),
            "records": count,
            "statuses": dict(statuses),
            "total_s": self.spent["all"],
            "with_what_pytest_and_the_plugin_do_s": time.perf_counter() - self._begin,
            "compile_ms_per_record": 1e3 * compiling / count,
            "beyond_timed_rounds_and_compiling_ms_per_record": 1e3
            * (self.spent["all"] - self.spent["timed rounds"] - compiling)
            / count,
            "ms_per_record": each(self.spent, count),
            "ms_per_record_of_each_problem": {
                problem: each(spent, counts[problem]) for problem, spent in self.by_problem.items() if counts[problem]
            },
            "one_kernel_records": len(apart),
            "of_them_over_2_percent_apart": [f"{key}: {100 * by:.1f} %" for by, key in apart if by > 0.02],
            "instruments": self.instruments,
        }


_cost = pytest.StashKey[Cost]()


def pytest_configure(config: pytest.Config) -> None:
    """Begin to clock."""
    if "ATTN_COST" not in os.environ:  # rather than lose at the end what took minutes
        raise pytest.UsageError("ATTN_COST does not say which file to write the cost to")
    config.stash[_cost] = Cost()
    config.stash[_cost].watch()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the file and print it without the single problems."""
    cost = config.stash[_cost]
    if not cost.records:
        return
    result = cost.result()
    Path(os.environ["ATTN_COST"]).write_text(json.dumps(result, indent=1) + "\n")
    shown = result | {"ms_per_record_of_each_problem": "in the file"}
    terminalreporter.write_line(json.dumps(shown, indent=1))
