"""``attn report RUN.json ... -o DIR``: charts, tables and a page that needs nothing else."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pytest_attn.commands.errors import UserError
from pytest_attn.commands.files import read_run

HELP = "turn runs into a self-contained page, charts and a CSV"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``attn report`` takes."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN.json", help="from pytest -m perf --benchmark-json")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("attn-report"), metavar="DIR", help="default: attn-report"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the report and print the path of its page.

    Raises :class:`UserError` for runs that are unusable or do not belong together, a missing package and a folder that
    cannot be written.
    """
    left_out: list[str] = []
    runs = [read_run(path, left_out) for path in arguments.runs]
    for each in runs:
        if not each.records:
            raise UserError(f"{each.source} holds no records")
    from pytest_attn.perf.record import BadRun
    from pytest_attn.report import MissingExtra, write_report
    from pytest_attn.report.contracts import one_contract

    try:
        runs, others = one_contract(runs)
        left_out += others
        page = write_report(runs, arguments.output, left_out)
    except (BadRun, MissingExtra, OSError) as error:  # each is a sentence
        raise UserError(str(error)) from None
    for sentence in left_out:
        print(sentence, file=sys.stderr)
    print(page)
    return 0
