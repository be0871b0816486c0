"""Tests that are known not to pass: the files of ``--attn-skips`` and ``--attn-xfails``.

A line is a prefix of node ids, then maybe a reason: ``correctness/test_equivalence.py::test_gradients[mine  # no dk``.
Blank lines and lines that begin with ``#`` say nothing. A line that matches no test is an error, so that the files
cannot outlive a renamed test or a removed implementation. What a line may match is every test that was collected,
before ``-m`` and ``-k`` deselect, under any of its names (:func:`names`).

A listed failure is expected strictly: a test that passes although it is listed fails, so that the line goes away with
the fault.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_attn import options
from pytest_attn.session import existing_session

_OPTIONS = ("--attn-skips", "--attn-xfails")
_SUITE = "pytest_attn/suite/"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file: the ``prefix`` of node ids, the ``reason``, and ``place``, the file and line number."""

    prefix: str
    reason: str
    place: str


def parse(text: str, name: str) -> list[Line]:
    """Return the lines that name tests, of the ``text`` of the file ``name``."""
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        prefix, *reason = re.split(r"(?:^|\s+)#\s*", line.strip(), maxsplit=1)
        if prefix:
            lines.append(Line(prefix, "".join(reason), f"{name}:{number}"))
    return lines


def check(config: pytest.Config) -> None:
    """Raise ``pytest.UsageError`` for a file that cannot be read."""
    for option in _OPTIONS:
        _lines(config, option)


def mark(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Mark the listed ones of all collected tests.

    With ``--attn-repro`` nothing is marked: who repeats a case wants to see what it does.

    Raises ``pytest.UsageError`` for a line that matches none of them, unless the command line left out tests that it
    may be about: it names single tests or other files, or by ``--attn-impl`` not the implementation of the line.
    """
    if options.repro(config) is not None:
        return
    listed = [(option, line) for option in _OPTIONS for line in _lines(config, option)]
    named = [(item, names(item)) for item in items] if listed else []
    for option, line in listed:
        matched = [item for item, ids in named if any(name.startswith(line.prefix) for name in ids)]
        if not matched and not _left_out(config, line, named):
            raise pytest.UsageError(f"{option} {line.place}: {line.prefix!r} matches no collected test")
        reason = f"{line.reason or 'listed'} ({line.place})"
        for item in matched:
            if option == "--attn-skips":
                item.add_marker(pytest.mark.skip(reason=reason))
            else:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def names(item: pytest.Item) -> set[str]:
    """Return what a test may be called: its node id, as pytest prints it, and in the suite from the suite's folder on.

    The last is the same wherever the suite is installed: ``correctness/test_equivalence.py::test_forward[naive]``.
    """
    file, colons, test = item.nodeid.partition("::")
    printed = os.path.relpath(item.config.rootpath / file, item.config.invocation_params.dir)
    files = {file, Path(printed).as_posix()}
    _, suite, inside = item.path.as_posix().partition(_SUITE)
    if suite:
        files.add(inside)
    return {found + colons + test for found in files}


def _lines(config: pytest.Config, option: str) -> list[Line]:
    path: str | None = config.getoption(option)
    if path is None:
        return []
    try:
        text = (config.invocation_params.dir / path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise pytest.UsageError(f"{option} {path} cannot be read: {why}") from None
    return parse(text, path)


def _left_out(config: pytest.Config, line: Line, named: Sequence[tuple[pytest.Item, set[str]]]) -> bool:
    """Tell whether a test that ``line`` matches may exist, only that this run was asked not to collect it."""
    if any("::" in argument for argument in config.args) or _of_another_file(config, line, named):
        return True
    session = existing_session(config)
    if session is None:
        return False
    # ``module:function`` is in the registry only where it is selected.
    stranger = re.search(r"\[(?:.*-)?(\w[\w.]*:\w+)", line.prefix)
    others = set(session.registry) | ({stranger[1]} if stranger else set())
    others -= set(session.selected)
    for item, ids in named:
        selected: str | None = getattr(getattr(item, "callspec", None), "params", {}).get("attn_impl")
        if selected is None:
            continue
        if any(_renamed(name, selected, other).startswith(line.prefix) for other in others for name in ids):
            return True
    return False


def _of_another_file(config: pytest.Config, line: Line, named: Sequence[tuple[pytest.Item, set[str]]]) -> bool:
    """Tell whether the line's file exists and lies outside of the paths that were given."""
    file = line.prefix.partition("::")[0]
    here = config.invocation_params.dir
    found = {(base / file).resolve() for base in (here, config.rootpath, Path(__file__).parent / "suite")}
    given = [(here / argument).resolve() for argument in config.args]
    collected = {item.path.resolve() for item, _ in named}
    return any(
        path.is_file() and path not in collected and not any(path.is_relative_to(one) for one in given)
        for path in found
    )


def _renamed(name: str, old: str, new: str) -> str:
    """Return a node id with one implementation's name put in place of another's among the parameters."""
    test, bracket, parameters = name.partition("[")
    return test + bracket + re.sub(rf"(?<![^-]){re.escape(old)}(?=[-\]])", lambda _: new, parameters)
