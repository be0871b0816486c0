"""One process of a gate: pytest on one side's checkout, measured by the same tool on both sides.

What may differ between the sides is what is measured. So the package ``pytest_attn`` is that of the ``attn`` that runs
the gate, on both sides; ``attn_impls``, the tests, grids in TOML and the kernels themselves come from each side's
checkout, where it holds them. Where a base's ``attn_impls`` is too old for this ``pytest_attn``,
``Harness(own=True)`` lets each side be measured by its own, which a changed contract then shows as ``no-data``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import attn_impls
import pytest_attn
from pytest_attn.perf.record import BadRun, Run, load_run
from pytest_attn.text import printable

_PACKAGE = Path(pytest_attn.__file__).resolve().parent
_WORDS = Path(attn_impls.__file__).resolve().parent
_PLUGIN = "pytest_attn.plugin"
_TAIL_LINES, _TAIL_BYTES = 15, 8192
_LEAST_FREE = 1 << 20  # bytes; with less left on a disk, that is what a process died of
_FINISHED = (0, 1)  # pytest's exit codes of a run that came to its end: all passed, some cell failed

# What pytest puts before a line; and how a line reads that says what went wrong.
_PREFIX = re.compile(r"^(INTERNALERROR>|ERROR:?|E\b)\s*")
_ERROR = re.compile(r"Error\b|: error:")


class GateError(Exception):
    """A gate that cannot be run. The message is one sentence; ``detail`` the lines of a log that explain it."""

    def __init__(self, sentence: str, detail: Sequence[str] = ()) -> None:
        super().__init__(sentence)
        self.detail = tuple(detail)


class Died(Exception):
    """A process that ended in the middle of measuring, such as a killed one: another try may go well."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two trees.

    Attributes:
        name: ``base`` or ``head``.
        commit: its commit, for a working tree that differs from it with ``+`` and a digest.
        checkout: the top folder of the tree.
        prefix: where in the tree the commands run, relative to its top.
    """

    name: str
    commit: str
    checkout: Path
    prefix: str = ""

    @property
    def folder(self) -> Path:
        """Where commands run."""
        return self.checkout / self.prefix


@dataclass(frozen=True, slots=True)
class Harness:
    """Which ``pytest_attn`` measures: this process's, by links in ``folder``, or with ``own`` each side's."""

    folder: Path
    own: bool = False

    def paths(self, side: Side) -> list[Path]:
        """Return the entries of ``PYTHONPATH``: our ``pytest_attn``, the checkout, its ``src``, our ``attn_impls``.

        Links name the two packages alone: the folder that holds them may be the other side's checkout. Where the
        packages are installed and the checkout has none, they are found without.
        """
        roots = [folder for folder in (side.checkout, side.checkout / "src") if folder.is_dir()]
        if _is_installed() and not any((root / _PACKAGE.name).exists() for root in roots):
            return roots
        front = [] if self.own else [_link(self.folder / "front", _PACKAGE)]
        return [*front, *roots, _link(self.folder / "behind", _WORDS)]


def environment(side: Side, harness: Harness) -> dict[str, str]:
    """Return the environment of every process of ``side``: ours, with its own checkout first on ``PYTHONPATH``."""
    paths = [str(path.absolute()) for path in harness.paths(side)]
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, *inherited])}


def set_up(side: Side, harness: Harness, command: str, log: Path) -> None:
    """Run the shell's ``command`` in the checkout, once, such as the build of an extension in place.

    Raises :class:`GateError` with the tail of its log when it fails.
    """
    code = _run(["/bin/sh", "-c", command], side, harness, log)
    if code:
        raise GateError(f"the {side.name}'s setup, {command!r}, ended with {_ending(code)}: {log}", tail(log))


def measure(
    side: Side,
    harness: Harness,
    arguments: Sequence[str],
    target: Path,
    *,
    shuffle: str,
    cells: Path | None = None,
    traced_by: Path | None = None,
) -> Run:
    """Time ``side`` in a fresh process and return its run, which lies in ``target``; its log lies beside it.

    Args:
        side: what to measure.
        harness: what measures it.
        arguments: of pytest, such as ``tests/perf`` and ``--attn-grid``; relative paths are the side's own.
        target: file to write; the folder must be there.
        shuffle: the same text gives the same order of cells.
        cells: file that lists the cells to time, for ``--attn-cells``; all without it.
        traced_by: the run that a profiler looked at in place of this one, for ``--attn-untraced``.

    Raises:
        Died: it was killed, or stopped in the middle.
        GateError: it cannot measure at all, or the disk is full; with the tail of its log.
        OSError: the log cannot be written.
    """
    log = target.with_suffix(".log")
    command = [
        # -P: the folder it runs in must not come before the harness.
        *(sys.executable, "-P", "-m", "pytest", "-p", _plugin_name(), "-m", "perf"),
        # The base's worktree may lie inside the head's tree, whose conftest.py is none of its business.
        *(f"--rootdir={side.checkout.absolute()}", f"--confcutdir={side.checkout.absolute()}"),
        *(f"--benchmark-json={target.absolute()}", f"--attn-shuffle={shuffle}"),
        *([] if cells is None else [f"--attn-cells={cells.absolute()}"]),
        *([] if traced_by is None else [f"--attn-untraced={traced_by.absolute()}"]),
        *arguments,
    ]
    code = _run(command, side, harness, log)
    ended, damaged = f"the {side.name}'s process ended with {_ending(code)}", None
    journal = target.with_name(f"{target.name}.journal")  # left where cells had no turn
    if code in _FINISHED and target.exists() and not journal.exists():
        try:
            return load_run(target)
        except BadRun as error:
            damaged = f"the {side.name}'s process left no result: {error}"
    if shutil.disk_usage(target.parent).free < _LEAST_FREE:
        raise GateError(f"the disk of {target.parent} is full; what is finished there is kept")
    if damaged or code < 0 or journal.exists():
        raise Died(damaged or ended)
    raise GateError(f"the {side.name} ({side.commit[:12]}) cannot be measured: {_complaint(log, ended)}", tail(log))


def tail(log: Path) -> list[str]:
    """Return the last lines of a log, fit for a terminal."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [printable(line) for line in text.splitlines() if line.strip()][-_TAIL_LINES:]


def _run(command: Sequence[str], side: Side, harness: Harness, log: Path) -> int:
    """Run ``command`` in the side's folder, its output in ``log``; nothing of it outlives this call."""
    if not side.folder.is_dir():
        raise GateError(f"the {side.name} ({side.commit[:12]}) has no folder {side.prefix}")
    with log.open("wb") as output, _process(command, side, environment(side, harness), output.fileno()) as process:
        return process.wait()


@contextlib.contextmanager
def _process(
    command: Sequence[str], side: Side, variables: dict[str, str], output: int
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        cwd=side.folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # A group of its own, so that what it started can be killed with it.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_installed() -> bool:
    return str(_PACKAGE.parent) in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))


def _link(folder: Path, package: Path) -> Path:
    """Make ``folder`` hold a link to ``package``, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / package.name
    if not link.is_symlink() or link.resolve() != package:
        link.unlink(missing_ok=True)
        link.symlink_to(package, target_is_directory=True)
    return folder


def _plugin_name() -> str:
    """Return what ``-p`` loads the plugin by: its entry point's name where it has one, or it would be loaded twice."""
    points = metadata.entry_points(group="pytest11")
    return next((point.name for point in points if point.value == _PLUGIN), _PLUGIN)


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _complaint(log: Path, otherwise: str) -> str:
    """Return the line of a log that says what is wrong: the last one that names an error."""
    lines = tail(log)
    errors = [line for line in lines if _PREFIX.match(line) or _ERROR.search(line)]
    return _PREFIX.sub("", (errors or lines or [otherwise])[-1]).strip("= ")
