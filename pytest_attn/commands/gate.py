"""``attn gate BASE.json HEAD.json``: a verdict for every cell, exit code 1 when one is slower."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from pytest_attn.commands.errors import UserError
from pytest_attn.commands.files import read_run, write_json

HELP = "compare two stored runs; exit 1 when a cell is slower, 2 when they cannot be compared"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``attn gate`` takes."""
    parser.add_argument("base", type=Path, metavar="BASE.json", help="the run to compare with")
    parser.add_argument("head", type=Path, metavar="HEAD.json", help="the run to judge")
    parser.add_argument("--threshold", default="5%", metavar="SHARE", help="least change of a median (default: 5%%)")
    parser.add_argument("--fail-on-lost", action="store_true", help="exit 1 too when the head lost a cell of the base")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts to FILE as well")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the cells that are the same, too")


def run(arguments: argparse.Namespace) -> int:
    """Print the verdicts; return 1 when a cell is slower, otherwise 0.

    Raises :class:`UserError` for runs that are unusable or cannot be compared, and for a bad threshold.
    """
    from pytest_attn.gate import NotComparable, Thresholds, common_shift, compare, exit_code
    from pytest_attn.gate.terminal import notes, render, summary
    from pytest_attn.gate.thresholds import parse_relative
    from pytest_attn.text import wants_colour

    try:
        thresholds = Thresholds(relative=parse_relative(arguments.threshold))
    except ValueError as error:
        raise UserError(f"--threshold: {error}") from None
    base, head = read_run(arguments.base), read_run(arguments.head)
    try:
        verdicts = compare(base, head, thresholds)
    except NotComparable as error:
        raise UserError(str(error)) from None
    code = exit_code(verdicts, fail_on_lost=arguments.fail_on_lost)
    shift = common_shift(verdicts, thresholds)
    if arguments.json is not None:
        # Before the table, so that a reader who closes the pipe early still gets the file.
        write_json(
            arguments.json,
            {
                "schema": 1,
                "base": base.source,
                "head": head.source,
                "thresholds": dataclasses.asdict(thresholds),
                "exit_code": code,
                "common_shift": shift,
                "verdicts": [verdict.to_dict() for verdict in verdicts],
            },
        )
    lines = [
        *notes(base, head, shift),
        *render(verdicts, verbose=arguments.verbose, colour=wants_colour(sys.stdout)),
        summary(verdicts, code),
    ]
    print(*lines, sep="\n")
    return code
