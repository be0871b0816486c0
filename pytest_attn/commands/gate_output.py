"""What every form of the gate prints and writes: terminal, JSON, JUnit, Markdown, annotations."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_attn.commands.errors import UserError
from pytest_attn.commands.files import write_json, write_text

if TYPE_CHECKING:
    from pytest_attn.gate import Settings, Thresholds, Verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where verdicts go and how they are reached."""
    parser.add_argument("--threshold", metavar="SHARE", help="least change of a median, instead of the settings'")
    parser.add_argument(
        "--noise",
        type=Path,
        metavar="FLOOR.json",
        help="ask of each cell at least three times its noise floor: the noise.json of attn gate noop",
    )
    parser.add_argument("--control", metavar="IMPL", help="judge times relative to this implementation's, run by run")
    parser.add_argument("--fail-on-lost", action="store_true", help="exit 1 too when the head lost a cell of the base")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts to FILE as well")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write them as JUnit XML, a test case for each")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write them as a page of Markdown")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the cells that are the same, too")


def settings(arguments: argparse.Namespace, folder: Path) -> Settings:
    """Return ``[tool.pytest-attn.gate]`` of the folder's ``pyproject.toml``, with what the options replace.

    Raises :class:`UserError` for either when it cannot be used, and for an output whose folder cannot be made: a gate
    takes minutes to hours, and its verdicts must not be lost at the end.
    """
    import dataclasses

    from pytest_attn.gate import BadSettings, read_settings
    from pytest_attn.gate.noise import BadNoise
    from pytest_attn.gate.thresholds import parse_relative

    for option in ("json", "junit", "markdown", "history"):
        path = getattr(arguments, option, None)
        if path is None:
            continue
        try:
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--{option} {path}: cannot make its folder: {error.strerror or error}") from None
    try:
        found = read_settings(folder / "pyproject.toml").with_noise(arguments.noise)
    except (BadNoise, BadSettings) as error:
        raise UserError(str(error)) from None
    if arguments.threshold is not None:
        try:
            relative = parse_relative(arguments.threshold)
        except ValueError as error:
            raise UserError(f"--threshold: {error}") from None
        paired, stored = (dataclasses.replace(each, relative=relative) for each in (found.paired, found.stored))
        found = dataclasses.replace(found, paired=paired, stored=stored)
    return dataclasses.replace(found, fail_on_lost=found.fail_on_lost or arguments.fail_on_lost)


def deliver(
    verdicts: Sequence[Verdict],
    thresholds: Thresholds,
    arguments: argparse.Namespace,
    *,
    notes: Sequence[str],
    fail_on_lost: bool,
    **more: Any,
) -> int:
    """Write and print the verdicts, and return the gate's exit code.

    In GitHub Actions the page of Markdown also goes to the job's summary, and annotations are printed.

    Args:
        verdicts: as the judges return them.
        thresholds: what they were judged by.
        arguments: of :func:`add_arguments`.
        notes: sentences for the top of the table.
        fail_on_lost: whether lost cells fail.
        more: what else the JSON says.

    Raises :class:`UserError` for a file that cannot be written.
    """
    from pytest_attn.gate import exit_code
    from pytest_attn.gate.annotations import workflow_commands
    from pytest_attn.gate.document import document
    from pytest_attn.gate.junit import junit
    from pytest_attn.gate.markdown import markdown
    from pytest_attn.gate.noise import raised_note
    from pytest_attn.gate.terminal import render, summary
    from pytest_attn.text import wants_colour

    code = exit_code(verdicts, fail_on_lost=fail_on_lost)
    notes = [*notes, *raised_note(verdicts, thresholds)]
    # Before the table, so that a reader who closes the pipe early still gets the files.
    if arguments.json is not None:
        write_json(arguments.json, document(verdicts, thresholds, code, **more))
    if arguments.junit is not None:
        write_text(arguments.junit, junit(verdicts, fail_on_lost=fail_on_lost))
    page = markdown(verdicts, code, notes=notes)
    if arguments.markdown is not None:
        write_text(arguments.markdown, page)
    lines = [*notes, *render(verdicts, verbose=arguments.verbose, colour=wants_colour(sys.stdout))]
    if os.environ.get("GITHUB_ACTIONS") == "true":
        lines += workflow_commands(verdicts, fail_on_lost=fail_on_lost)
        _add_to_summary(page)
    print(*lines, summary(verdicts, code), sep="\n")
    return code


def _add_to_summary(page: str) -> None:
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if not name:
        return
    try:
        with Path(name).open("a", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        raise UserError(f"cannot write {name}: {error.strerror or error}") from None
