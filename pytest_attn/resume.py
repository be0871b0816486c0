"""What keeps a long timed run: its journal, ``--attn-resume``, and when the journal goes.

Where ``--benchmark-json=run.json`` is given, each finished cell goes to ``run.json.journal``. It is removed once
``run.json`` is written and every cell had its turn, so a journal that is there belongs to a run that was killed or
interrupted. ``--attn-resume`` continues that journal; without one it takes up what ``run.json`` itself holds, without
either it starts from nothing. An error or an out-of-memory of the earlier run is a result like any other and is not
tried again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_attn import options
from pytest_attn.parametrize import cell
from pytest_attn.session import AttnSession, attn_session
from pytest_attn.text import count

if TYPE_CHECKING:
    from pytest_attn.perf.journal import Header
    from pytest_attn.perf.measure import Measured


def _check_writable(path: Path) -> None:
    """Raise ``pytest.UsageError`` where pytest-benchmark, at the end of the run, could not write ``path``."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise pytest.UsageError(f"--benchmark-json {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise pytest.UsageError(f"--benchmark-json {path} is a folder, not a file")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise pytest.UsageError(f"--benchmark-json {path} cannot be written: permission denied")


def keep_journal(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Open the journal of a timed run, and with ``--attn-resume`` take up what was measured.

    Raises ``pytest.UsageError`` for the journal of another run: an unfinished one that would be lost, or one that
    cannot be continued under these options, here.
    """
    path = options.json_path(config)
    timed = [item for item in items if "attn_bench" in getattr(item, "fixturenames", ())]
    if path is None or not timed or not _writes_results(config, path):
        return
    _check_writable(path)
    from pytest_attn.perf.journal import Journal, count_cells

    session = attn_session(config)
    journal = path.with_name(f"{path.name}.journal")
    try:
        if config.getoption("attn_resume"):
            source, measured = _earlier(session, path, journal)
            _refuse_others(source, measured, timed)
        elif cells := count_cells(journal):
            raise pytest.UsageError(
                f"{journal} holds {count(cells, 'cell')} of a run that did not finish: continue it with --attn-resume, "
                "or delete the file to start over"
            )
        else:
            source, measured = None, []
        session.resumed = {each.record.key: each for each in measured}
        # Absolute, since a test may change the folder.
        where = journal.absolute()
        session.journal = Journal(where) if source == journal else Journal.create(where, _header(session), measured)
    except OSError as error:
        raise pytest.UsageError(f"cannot write {journal}: {error.strerror or error}") from None
    line = _said(path, source, len(measured)) if config.getoption("attn_resume") else None
    config.pluginmanager.register(JournalHooks(session, timed, line), "attn-journal")


class JournalHooks:
    """Says what was taken up, removes the journal that has served, and says how to continue where it has not."""

    def __init__(self, session: AttnSession, timed: Sequence[pytest.Item], line: str | None) -> None:
        self._session = session
        self._left = {item.nodeid for item in timed}
        self._line = line
        self._kept = False

    def pytest_report_collectionfinish(self) -> list[str]:
        """Say what this run continues."""
        return [] if self._line is None else [self._line]

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Note that a test had its turn; one that was interrupted does not get here."""
        self._left.discard(nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Remove the journal of a complete run, and one that holds nothing.

        pytest-benchmark writes the JSON in the first half of a hook wrapper, so it is there by now; when it could not
        be written, this is not called.
        """
        session = self._session
        assert session.journal is not None
        written = {record.key for record in session.records}
        if self._left or not session.resumed.keys() <= written:
            self._kept = bool(written or session.resumed)
        if not self._kept:
            session.journal.remove()

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say how to continue an unfinished run."""
        if self._kept:
            terminalreporter.write_line(f"unfinished, {count(len(self._left), 'test')} left: add --attn-resume")

    def pytest_unconfigure(self) -> None:
        """Close the file, whatever happened."""
        if self._session.journal is not None:
            self._session.journal.close()


def _writes_results(config: pytest.Config, path: Path) -> bool:
    """Tell whether this process will measure and write ``path``."""
    benchmarks: Any = getattr(config, "_benchmarksession", None)
    if config.getoption("collectonly") or benchmarks is None or benchmarks.disabled or benchmarks.skip:
        return False
    return path.is_file() or path.is_dir() or not path.exists()  # not /dev/stdout


def _earlier(session: AttnSession, path: Path, journal: Path) -> tuple[Path | None, list[Measured]]:
    """Return the file that the earlier run left, ``None`` when there is none, and what it measured."""
    from pytest_attn.perf.journal import read_journal, read_json
    from pytest_attn.perf.record import BadRun

    try:
        if journal.exists():
            source, (header, measured) = journal, read_journal(journal)
        # pytest-benchmark < 5.3 makes an empty file before we run.
        elif path.exists() and path.stat().st_size:
            source, (header, measured) = path, read_json(path)
        else:
            return None, []
    except BadRun as error:
        raise pytest.UsageError(f"--attn-resume: {error}") from None
    if found := _differences(header, _header(session)):
        from pytest_attn.gate.comparable import sentence

        raise pytest.UsageError(
            f"--attn-resume: {source} was taken with another {sentence(found)}; delete it to start over"
        )
    return source, [each for each in measured if each.record.status != "unsupported"]


def _differences(before: Header, now: Header) -> dict[str, str]:
    """Return what keeps a run from being continued; the environment, too, since a JSON states one for all of it."""
    from pytest_attn.gate.comparable import Terms, changes, differences

    found = differences(*(Terms(each.machine, {each.contract}, each.grid) for each in (before, now)))
    if environment := changes(before.environment, now.environment):
        found["environment"] = "; ".join(environment)
    if shard := changes({"shard": before.shard}, {"shard": now.shard}):
        found["shard"] = shard[0].removeprefix("shard: ")
    return found


def _refuse_others(source: Path | None, measured: Sequence[Measured], timed: Sequence[pytest.Item]) -> None:
    """Refuse results that this command would not put into its JSON: they would be lost with the journal."""
    cells = [params for item in timed if (params := cell(item)) is not None]
    if len(cells) < len(timed):  # a test with problems of its own: what it times is not known
        return
    keys = {(params["attn_impl"], params["attn_problem"], params["attn_direction"]) for params in cells}
    others = [" ".join(each.record.key) for each in measured if each.record.key not in keys]
    if others:
        raise pytest.UsageError(
            f"--attn-resume: {source} holds {count(len(others), 'cell')} that this command does not time, such as "
            f"{others[0]}; repeat the command of the unfinished run"
        )


def _header(session: AttnSession) -> Header:
    from pytest_attn.perf.device import environment, machine
    from pytest_attn.perf.journal import Header

    # Through JSON, since it is compared with what was read from JSON.
    here, versions = json.loads(json.dumps([machine(session.device), environment()]))
    return Header(here, session.contract.id, session.grid_name, session.shard, versions)


def _said(path: Path, source: Path | None, cells: int) -> str:
    if source is None:
        return f"attn: nothing to resume, neither {path}.journal nor {path} is there"
    return f"attn: resumed {count(cells, 'cell')} from {source}"
