"""Our part of pytest-benchmark's JSON: the top-level key ``attn``, and a file that is written or said not to be."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from pytest_attn import options
from pytest_attn.session import AttnSession, attn_session, existing_session


class BenchmarkHooks:
    """Hooks of pytest-benchmark; registered only where it is, since pluggy would reject them otherwise."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_machine_info(self, config: pytest.Config, machine_info: dict[str, Any]) -> None:
        """Add the GPU, and drop the CPU's momentary clock: it makes every two runs look like two machines."""
        session = existing_session(config)
        if session is not None:
            _describe(session, machine_info)

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_benchmark_compare_machine_info(
        self, config: pytest.Config, machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
    ) -> None:
        """Say of this machine what a run of ours said of its own; the comparison comes before we know what this is."""
        if "attn" in compared_benchmark.get("machine_info", {}):
            _describe(attn_session(config), machine_info)

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, config: pytest.Config, output_json: dict[str, Any]) -> None:
        """Add what the run says about itself, and the records that have no time."""
        session = existing_session(config)
        if session is not None:
            output_json["attn"] = session.run().header()

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        """Keep a JSON that the disk does not take from ending the run in a traceback.

        Around pytest-benchmark's wrapper, which writes it, and inside the terminal's, which prints the summary.
        """
        try:
            yield
        except OSError as error:
            ours, path = existing_session(session.config), options.json_path(session.config)
            if ours is None or path is None or error.filename not in (None, str(path)):
                raise
            ours.unwritten = f"cannot write {path}: {error.strerror or error}"
            if ours.journal is not None:
                ours.unwritten += f"; what was measured is in {ours.journal.path}: make room, then add --attn-resume"
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


def _describe(session: AttnSession, machine_info: dict[str, Any]) -> None:
    machine_info.get("cpu", {}).pop("hz_actual", None)
    machine_info.get("cpu", {}).pop("hz_actual_friendly", None)
    # Not session.run(): a comparison asks at the run's start, when what is timed together is not known yet.
    machine_info["attn"] = dict(session.machine)


def quieten(config: pytest.Config) -> None:
    """Leave out pytest-benchmark's tables, one a problem and wider than a terminal, unless ``-v`` asks for them."""
    session = existing_session(config)
    benchmarks = getattr(config, "_benchmarksession", None)
    if session is not None and session.records and benchmarks is not None and config.get_verbosity() < 1:
        benchmarks.quiet = True


def write_without_times(config: pytest.Config, exitstatus: int) -> None:
    """Write ``--benchmark-json`` when no cell has a time: all out of memory is a result.

    A run that was refused or ended before its first cell is none, and one that came to no cell leaves what an earlier
    one wrote.
    """
    session = existing_session(config)
    benchmarks = getattr(config, "_benchmarksession", None)
    if session is None or not session.cells or config.getoption("collectonly"):
        return
    if benchmarks is None or not benchmarks.json or benchmarks.benchmarks or benchmarks.disabled:
        return
    ended_early = exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    if not session.records and (ended_early or _holds_something(options.json_path(config))):
        return
    hook = config.hook
    output = hook.pytest_benchmark_generate_json(
        config=config,
        benchmarks=[],
        include_data=True,
        machine_info=benchmarks.get_machine_info(),
        commit_info=hook.pytest_benchmark_generate_commit_info(config=config),
    )
    hook.pytest_benchmark_update_json(config=config, benchmarks=[], output_json=output)
    benchmarks.save_json(output)
    benchmarks.json = None  # it is written; pytest-benchmark would now warn that there is nothing to save


def _holds_something(path: Path | None) -> bool:
    return path is not None and path.is_file() and path.stat().st_size > 0
