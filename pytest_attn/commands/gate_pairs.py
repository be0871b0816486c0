"""What ``attn gate run`` and ``attn gate noop`` share: a folder that can be continued, and pairs measured into it."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import signal
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pytest_attn.commands import gate_output
from pytest_attn.commands.errors import UserError
from pytest_attn.commands.files import write_json
from pytest_attn.text import count

if TYPE_CHECKING:
    from pytest_attn.gate import Pair, Settings, Verdict
    from pytest_attn.gate.process import Side
    from pytest_attn.gate.verdict import Key

_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of ``--out``, and what its ``gate.json`` says of the run."""

    path: Path
    plan: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """The pairs of the first stage, and the verdicts after the second."""

    pairs: list[Pair]
    verdicts: list[Verdict]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what both commands take."""
    parser.add_argument("--pairs", type=int, metavar="N", help="pairs of processes (default: the settings', 15)")
    parser.add_argument("--setup", metavar="COMMAND", help="shell command to run in each checkout first")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("attn-gate"),
        metavar="DIR",
        help="folder for every result; one that a killed run left is continued (default: %(default)s)",
    )
    parser.add_argument("--history", type=Path, metavar="FILE", help="add the medians to this history as well")
    parser.add_argument(
        "--harness",
        choices=("ours", "own"),
        default="ours",
        help="measure both sides with this attn's pytest_attn, or each with its own (default: %(default)s)",
    )
    parser.add_argument(
        "--trace",
        choices=("every", "first"),
        default="every",
        help="let a profiler name the kernels in every process, or in the first pair only, which saves seconds a "
        "process on CUDA (default: %(default)s)",
    )
    gate_output.add_arguments(parser)
    parser.add_argument("pytest", nargs="*", metavar="-- PYTEST_ARGS", help="what pytest runs, such as tests/perf")


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Turn what can go wrong into a :class:`UserError`, and SIGTERM into Ctrl-C, which ends the measuring process."""
    from pytest_attn.gate import NotComparable
    from pytest_attn.gate.process import GateError

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, interrupt) if main else None
    try:
        yield
    except GateError as error:
        print(*(f"  {line}" for line in error.detail), sep="\n", end="\n" * bool(error.detail), file=sys.stderr)
        raise UserError(str(error)) from None
    except NotComparable as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"cannot write {error.filename or 'a file'}: {error.strerror or error}") from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def opened(
    arguments: argparse.Namespace, settings: Settings, kind: str, base: str, head: str, prefix: str
) -> Iterator[Folder]:
    """Give the folder of ``--out``, new or left by a run of the same trees and options; no other gate has it meanwhile.

    Raises :class:`UserError` for a folder of something else, one in use, too few pairs, and nothing to measure.
    """
    if not arguments.pytest:
        raise UserError("nothing is named to measure; give pytest's arguments after --, such as -- tests/perf")
    pairs = arguments.pairs if arguments.pairs is not None else settings.pairs
    if pairs < settings.paired.min_pairs:
        raise UserError(
            f"{count(pairs, 'pair')} would leave every cell unsure: min_pairs is {settings.paired.min_pairs}"
        )
    path = arguments.out.absolute()
    path.mkdir(parents=True, exist_ok=True)
    with (path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another gate is writing to {arguments.out}") from None
        wanted = {
            "schema": _SCHEMA,
            "kind": kind,
            "base": base,
            "head": head,
            "prefix": prefix,
            "pytest": arguments.pytest,
            "setup": arguments.setup,
            "harness": arguments.harness,
            "trace": arguments.trace,
        }
        plan = _plan(path / "gate.json")
        if plan is None:
            if any(item.name != ".lock" for item in path.iterdir()):
                raise UserError(f"{arguments.out} holds something else than a gate's results; give another --out")
            # Its own results must not make a working tree another one.
            (path / ".gitignore").write_text("*\n", encoding="utf-8")
            plan = {**wanted, "token": uuid.uuid4().hex}
            write_json(path / "gate.json", plan)
        elif differ := [name for name, value in wanted.items() if plan.get(name) != value]:
            name = differ[0]
            raise UserError(
                f"{arguments.out} holds a gate with another {name} ({plan.get(name)} -> {wanted[name]}); "
                "give another --out, or delete it"
            )
        yield Folder(path, plan)


def measure(folder: Folder, base: Side, head: Side, settings: Settings, arguments: argparse.Namespace) -> Measured:
    """Measure the pairs, and what looks slower once more, and return the verdicts."""
    from pytest_attn.gate import judge_confirmed, judge_pairs, suspects
    from pytest_attn.gate.collect import Collector
    from pytest_attn.gate.process import GateError, Harness, set_up
    from pytest_attn.gate.worktree import working_tree

    harness = Harness(folder.path / ".harness", own=arguments.harness == "own")
    if arguments.setup:
        for side in (base, head) if base.checkout != head.checkout else (head,):
            _say(f"setup: {side.name}: {arguments.setup}")
            set_up(side, harness, arguments.setup, folder.path / f"setup-{side.name}.log")

    def unchanged() -> None:
        if head.checkout.name != ".head" and working_tree(head.checkout) != head.commit:
            raise GateError("the working tree changed while it was measured; start again with another --out")

    first_only = arguments.trace == "first"
    accept = (lambda run: None) if settings.noise is None else settings.noise.refuse_other
    collector = Collector(base, head, harness, arguments.pytest, folder.path, _say, unchanged, first_only, accept)
    pairs = arguments.pairs if arguments.pairs is not None else settings.pairs
    first = collector.collect("first", pairs)
    verdicts = judge_pairs(first, settings.paired, arguments.control)
    if doubtful := suspects(verdicts):
        _say(f"again: {count(len(doubtful), 'cell')} looked slower, to be measured on fresh pairs")
        cells = _with_control(doubtful, arguments.control, first)
        digest = hashlib.sha256(repr(cells).encode()).hexdigest()[:8]
        again = collector.collect(f"again-{digest}", pairs, cells)
        verdicts = judge_confirmed(verdicts, again, settings.paired, arguments.control)
    return Measured(first, verdicts)


def name_files(arguments: argparse.Namespace, folder: Path) -> None:
    """Give every output that no option names its file in the folder."""
    for option, name in (("json", "verdicts.json"), ("junit", "junit.xml"), ("markdown", "summary.md")):
        if getattr(arguments, option) is None:
            setattr(arguments, option, folder / name)


def remember(arguments: argparse.Namespace, folder: Folder, measured: Measured, code: int) -> None:
    """Add the run to ``--history``, where that was given; :class:`UserError` when it cannot be written."""
    if arguments.history is None:
        return
    from pytest_attn.gate.history import BadHistory, Entry, append, now

    run = measured.pairs[0].head
    contracts = sorted({record.contract for record in run.records})
    plan = folder.plan
    entry = Entry(
        plan["token"],
        now(),
        plan["kind"],
        plan["base"],
        plan["head"],
        run.machine,
        ", ".join(contracts),
        run.grid,
        code,
    )
    try:
        append(arguments.history, entry, measured.verdicts)
    except BadHistory as error:
        raise UserError(str(error)) from None


def _plan(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError):
        data = None
    if not isinstance(data, dict) or "token" not in data:
        raise UserError(f"{path} is damaged; give another --out, or delete the folder")
    return data


def _with_control(cells: Sequence[Key], control: str | None, pairs: Sequence[Pair]) -> list[Key]:
    """Return ``cells``, and the control's cells that they are judged by."""
    groups = {(problem, direction) for _, problem, direction in cells}
    runs = [run for pair in pairs for run in (pair.base, pair.head)]
    timed = {record.key for run in runs for record in run.records if record.status == "ok"}
    return sorted({*cells, *(key for key in timed if key[0] == control and key[1:] in groups)})


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
