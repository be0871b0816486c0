"""``--attn-gate BASE.json``: the verdicts of ``attn gate compare``, at the end of the run that they are about."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest

from pytest_attn.gate.comparable import NotComparable, Terms, differences, sentence
from pytest_attn.gate.compare import compare, exit_code
from pytest_attn.gate.noise import BadNoise
from pytest_attn.gate.settings import BadSettings, read_settings
from pytest_attn.gate.verdict import Verdict
from pytest_attn.perf.record import BadRun, Run, load_run
from pytest_attn.session import existing_session


class GateHooks:
    """Compares what the run measured with a stored run. Registered only where that was asked for."""

    def __init__(self, config: pytest.Config) -> None:
        """Read the base before anything is measured, and before this run's own JSON may replace it.

        Raises ``pytest.UsageError`` for a base or a ``[tool.pytest-attn.gate]`` that cannot be used.
        """
        self._config = config
        try:
            self._base = load_run(config.getoption("attn_gate"))
            self._settings = read_settings(config.rootpath / "pyproject.toml").with_noise()
        except (BadNoise, BadRun, BadSettings) as error:
            raise pytest.UsageError(f"--attn-gate: {error}") from None
        self._head: Run | None = None
        self._verdicts: list[Verdict] = []
        self._refusal: str | None = None

    def pytest_collection_finish(self) -> None:
        """Refuse a base of another machine, contract or grid before hours are spent on a run."""
        session = existing_session(self._config)
        if session is None or not session.cells:
            return
        run = _as_stored(session.run())
        try:
            if self._settings.noise is not None:
                self._settings.noise.refuse_other(run)
        except NotComparable as error:
            raise pytest.UsageError(f"--attn-gate: {error}") from None
        contracts = {record.contract for record in self._base.records if record.status == "ok"}
        before = Terms(self._base.machine, contracts, self._base.grid)
        if found := differences(before, Terms(run.machine, {session.contract.id}, run.grid)):
            raise pytest.UsageError(
                f"--attn-gate: {self._base.source} cannot be compared with this run, they differ in {sentence(found)}"
            )

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Judge, and fail a run in which a cell is slower; one that failed otherwise keeps its exit status."""
        ours = existing_session(self._config)
        if self._config.getoption("collectonly"):
            return
        try:
            if ours is None or not ours.records:
                raise NotComparable("nothing was timed; add -m perf")
            self._head = _as_stored(ours.run())
            self._verdicts = compare(self._base, self._head, self._settings.stored)
        except NotComparable as error:
            self._refusal = str(error)
        if session.exitstatus != pytest.ExitCode.OK:
            return
        if self._refusal is not None:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        elif exit_code(self._verdicts, self._settings.fail_on_lost):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the verdicts, and annotations where GitHub reads them."""
        if self._refusal is not None:
            terminalreporter.section("attention: gate")
            terminalreporter.write_line(f"--attn-gate: {self._refusal}", red=True)
        if self._head is None or not self._verdicts:
            return
        from pytest_attn.gate.annotations import workflow_commands
        from pytest_attn.gate.noise import raised_note
        from pytest_attn.gate.shift import common_shift
        from pytest_attn.gate.terminal import notes, render, summary

        code = exit_code(self._verdicts, self._settings.fail_on_lost)
        lines = [
            *notes(self._base, self._head, common_shift(self._verdicts, self._settings.stored)),
            *raised_note(self._verdicts, self._settings.stored),
            *render(self._verdicts, verbose=self._config.get_verbosity() > 0, colour=terminalreporter.hasmarkup),
            summary(self._verdicts, code),
        ]
        if os.environ.get("GITHUB_ACTIONS") == "true":
            lines += workflow_commands(self._verdicts, fail_on_lost=self._settings.fail_on_lost)
        terminalreporter.section("attention: gate")
        for line in lines:
            terminalreporter.write_line(line)


def _as_stored(run: Run) -> Run:
    """Return ``run`` as its JSON would be read: it is compared with one that was."""
    machine, environment = json.loads(json.dumps([dict(run.machine), dict(run.environment)]))
    return dataclasses.replace(run, machine=machine, environment=environment)
