"""Running Nsight Compute around :mod:`pytest_attn.counters.child`, and reading what it prints.

Its raw page as CSV has a line of names, a line of units and a line for each kernel. Its errors are lines that begin
with ``==ERROR==``; those that a user can do something about become sentences here.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attn_impls.problem import Direction, Problem
from pytest_attn.counters.child import RANGE
from pytest_attn.counters.document import Call, make_call, make_kernel
from pytest_attn.counters.rows import METRICS
from pytest_attn.text import count, printable

PERMISSION = (
    "this user may not read the GPU's performance counters (ERR_NVGPUCTRPERM): run as root, or load the driver with "
    "NVreg_RestrictProfilingToAdminUsers=0 (docs/profile.md)"
)
# What a line of Nsight Compute holds, the sentence for it, and whether every other implementation would end so too.
_COMPLAINTS: tuple[tuple[str, str, bool], ...] = (
    (r"ERR_NVGPUCTRPERM", PERMISSION, True),
    (
        r"driver is not compatible|LibraryNotLoaded|failed to connect to the CUDA driver|Compute CUDA modules",
        "this Nsight Compute does not match the driver: install the one of the driver's CUDA version",
        True,
    ),
    (
        r"driver resource was unavailable",
        "another program, such as DCGM, holds the GPU's performance counters: stop it and try again",
        True,
    ),
)
_UNKNOWN = re.compile(r"(find|unknown|invalid|unsupported).*metric|metric.*(not found|not available)", re.IGNORECASE)
_MARK = re.compile(rf"\b{RANGE}(\d+)\b")
_FOUND = ("Kernel Name", "Grid Size", "Block Size")
_SECONDS = {
    "second": 1.0,
    "s": 1.0,
    "msecond": 1e-3,
    "ms": 1e-3,
    "usecond": 1e-6,
    "us": 1e-6,
    "nsecond": 1e-9,
    "ns": 1e-9,
}
_PREFIXES = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_LAST_WORDS_S = 20.0  # to print what it has, for one that is told to stop


class NcuFailed(Exception):
    """What could not be profiled; the message is one sentence.

    Attributes:
        everywhere: whether other implementations would end in the same way.
    """

    def __init__(self, sentence: str, *, everywhere: bool = False) -> None:
        super().__init__(sentence)
        self.everywhere = everywhere


@dataclass(slots=True)
class Ncu:
    """Nsight Compute at ``path``, with ``timeout_s`` for each process.

    Attributes:
        unknown: metrics that it was found not to know; they are not asked for again.
    """

    path: str
    timeout_s: float
    unknown: set[str] = field(default_factory=set)

    def profile(
        self, impl: str, problems: Sequence[Problem], direction: Direction, device: str, found: Findings
    ) -> None:
        """Profile one call of ``impl`` on each problem, and put what comes of it into ``found``.

        Raises :class:`NcuFailed`; what was profiled before stands in ``found`` then, too.
        """
        with tempfile.TemporaryDirectory(prefix="attn-profile-") as name:
            folder = Path(name)
            ended = self._run(folder, impl, problems, direction, device)
            rows = ended.rows
            marked = [row for row in rows if row.problem is not None]
            if rows and not marked and len(problems) > 1:
                # This Nsight Compute does not print ranges: one problem a process tells kernels apart as well.
                for problem in problems:
                    self.profile(impl, [problem], direction, device, found)
                return
            found.take(impl, problems, direction, marked or rows, ended.answers)
            ended.complain(impl, self.timeout_s)

    def _run(self, folder: Path, impl: str, problems: Sequence[Problem], direction: Direction, device: str) -> _Ended:
        """Run it, again without the metrics that it does not know."""
        request, answers = folder / "request.json", folder / "answers.jsonl"
        request.write_text(
            json.dumps(
                {
                    "impl": impl,
                    "problems": [problem.to_dict() for problem in problems],
                    "direction": direction.value,
                    "device": device,
                    "answers": str(answers),
                }
            ),
            encoding="utf-8",
        )
        while True:
            answers.unlink(missing_ok=True)
            log = folder / "ncu.log"
            log.unlink(missing_ok=True)
            asked = [metric for metric in METRICS if metric not in self.unknown]
            code = _wait(self._command(asked, len(problems), log, request), folder / "output.log", self.timeout_s)
            text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
            output = (folder / "output.log").read_text(encoding="utf-8", errors="replace")
            ended = _Ended(code, text, list(read_csv(text)), output, _answers(answers))
            unknown = _not_known(f"{text}\n{output}", asked)
            if not unknown or ended.rows:
                return ended
            self.unknown |= unknown

    def _command(self, metrics: Sequence[str], problems: int, log: Path, request: Path) -> list[str]:
        ranges = [word for number in range(problems) for word in ("--nvtx-include", f"{RANGE}{number}/")]
        return [
            self.path,
            *("--csv", "--page", "raw", "--print-units", "base"),
            *("--metrics", ",".join(metrics)),
            *("--replay-mode", "kernel", "--target-processes", "all", "--clock-control", "none"),
            *("--nvtx", *ranges),
            *("--log-file", str(log)),
            *(sys.executable, "-m", "pytest_attn.counters.child", str(request)),
        ]


@dataclass(frozen=True, slots=True)
class KernelRow:
    """A kernel as Nsight Compute printed it: ``problem`` is the number in its range's name, where one was printed."""

    name: str
    grid: str
    block: str
    problem: int | None
    metrics: dict[str, float]


@dataclass(slots=True)
class Findings:
    """What processes brought: calls, and what they said of the machine and of the implementations' versions."""

    calls: list[Call] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def take(
        self,
        impl: str,
        problems: Sequence[Problem],
        direction: Direction,
        rows: Sequence[KernelRow],
        answers: Sequence[Mapping[str, Any]],
    ) -> None:
        """Add one process's kernels and answers; a problem whose call did not come to its end is left out."""
        known = {key: value for answer in answers for key, value in answer.items()}
        self.machine = known.get("machine") or self.machine
        if "version" in known:
            self.versions[impl] = known["version"]
        resources = known.get("resources") or {}
        said = {answer["problem"]: answer for answer in answers if "problem" in answer}
        for number, problem in enumerate(problems):
            own = [row for row in rows if row.problem in (number, None)]
            answer = said.get(number)
            if answer is None:
                continue
            if answer["status"] != "ok":
                self.calls.append(Call(impl, problem, direction, answer["status"], answer["reason"]))
            elif own:
                kernels = [make_kernel(row.name, row.grid, row.block, row.metrics, resources) for row in own]
                self.calls.append(make_call(impl, problem, direction, kernels))
            else:
                self.calls.append(Call(impl, problem, direction, "error", "Nsight Compute profiled no kernel of it"))


def read_csv(text: str) -> Iterator[KernelRow]:
    """Yield the kernels of a raw page; everything else that Nsight Compute prints is passed over."""
    names: list[str] = []
    units: list[str] = []
    for cells in csv.reader(line for line in text.splitlines() if line.startswith('"')):
        if cells[0] == "ID":
            names, units = cells, []
        elif not units:
            units = cells
        elif len(cells) == len(names) == len(units):
            row = dict(zip(names, cells, strict=True))
            marks = [found[1] for name, cell in row.items() if "Range" in name for found in _MARK.finditer(cell)]
            metrics = {
                name: value * factor(unit)
                for name, unit, cell in zip(names, units, cells, strict=True)
                if "__" in name and (value := _number(cell)) is not None
            }
            name, grid, block = (row.get(column, "") for column in _FOUND)
            yield KernelRow(name, grid, block, int(marks[-1]) if marks else None, metrics)


def factor(unit: str) -> float:
    """Return what a value in Nsight Compute's ``unit`` is multiplied by to be in seconds, bytes or bytes a second.

    >>> factor("nsecond"), factor("byte/second"), factor("Kbyte/block"), factor("register/thread"), factor("%")
    (1e-09, 1.0, 1000.0, 1.0, 1.0)
    """
    above, _, below = unit.partition("/")
    prefix = re.fullmatch(r"([KMGT])byte", above)
    top = _PREFIXES[prefix[1]] if prefix else _SECONDS.get(above, 1.0)
    return top / _SECONDS.get(below, 1.0)


def _number(cell: str) -> float | None:
    try:
        value = float(cell.replace(",", ""))
    except ValueError:
        return None  # "n/a"
    return value if math.isfinite(value) else None


def _not_known(text: str, asked: Sequence[str]) -> set[str]:
    """Return the metrics that an error names: in full, or by what stands before the first dot."""
    lines = [line.replace("\\", "") for line in text.splitlines() if line.startswith("==") and _UNKNOWN.search(line)]
    words = {word for line in lines for word in re.findall(r"\w+__\w+", line)}
    full = {metric for metric in asked if any(metric in line for line in lines)}
    return full or {metric for metric in asked if metric.partition(".")[0] in words}


@dataclass(frozen=True, slots=True)
class _Ended:
    """How Nsight Compute ended (``None``: stopped by the time limit), what it and the child printed, the answers.

    ``rows`` are the kernels that its ``log`` holds.
    """

    code: int | None
    log: str
    rows: list[KernelRow]
    output: str
    answers: list[dict[str, Any]]

    def complain(self, impl: str, timeout_s: float) -> None:
        """Raise :class:`NcuFailed` unless all went well."""
        text = f"{self.log}\n{self.output}"
        for pattern, sentence, everywhere in _COMPLAINTS:
            if re.search(pattern, text):
                raise NcuFailed(sentence, everywhere=everywhere)
        for answer in self.answers:
            if "unavailable" in answer:
                raise NcuFailed(f"{impl} cannot run here: {printable(answer['unavailable'])}")
        if self.code is None:
            raise NcuFailed(f"{impl} was stopped after {timeout_s:g} s under Nsight Compute (--timeout)")
        errors = [line.removeprefix("==ERROR==").strip() for line in text.splitlines() if line.startswith("==ERROR==")]
        if self.code == 0 and (self.rows or not errors):
            failed = any(answer.get("status", "ok") != "ok" for answer in self.answers)
            if self.rows or failed:
                return
            raise NcuFailed(f"Nsight Compute profiled no kernel of {impl}")
        lines = [line.strip() for line in self.output.splitlines() if line.strip() and not line.startswith("==")]
        last = printable((errors[:1] or lines[-1:] or ["it said nothing"])[0])
        # "The application returned an error code" tells less than the application's own last line.
        if "application returned" in last and lines:
            last = printable(lines[-1])
        how = f"exit code {self.code}" if self.code >= 0 else f"signal {-self.code}"
        raise NcuFailed(f"Nsight Compute ended with {how} on {impl}: {last}")


def _answers(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    answers = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):  # cut off with the process
            answers.append(json.loads(line))
    return answers


def _wait(command: Sequence[str], output: Path, timeout_s: float) -> int | None:
    """Run ``command``; return its exit code, or ``None`` where it had to be stopped. Nothing of it outlives this."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # a group of its own, so that what it started can be killed with it
        )
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # it prints what it has profiled so far
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LAST_WORDS_S)
            return None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def summary(calls: Sequence[Call]) -> str:
    """Return how many calls were profiled, and how many were not, by status."""
    tally = Counter(call.status for call in calls)
    others = ", ".join(f"{number} {status}" for status, number in tally.items() if status != "ok")
    return f"{count(tally['ok'], 'call')} profiled{f', {others}' if others else ''}"
