"""``attn gate compare BASE.json HEAD.json``: two stored runs, the weaker form of the gate."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_attn.commands import gate_output
from pytest_attn.commands.errors import UserError
from pytest_attn.commands.files import read_run

HELP = "compare two stored runs, the weaker form"

_MAY_DIFFER = ("machine", "driver", "contract", "grid")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``attn gate compare`` takes."""
    parser.add_argument("base", type=Path, metavar="BASE.json", help="the run to compare with")
    parser.add_argument("head", type=Path, metavar="HEAD.json", help="the run to judge")
    parser.add_argument(
        "--allow", default="", metavar=",".join(_MAY_DIFFER), help="what may differ between the runs, comma-separated"
    )
    gate_output.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the verdicts; return 1 when a cell is slower, otherwise 0.

    Raises :class:`UserError` for runs that are unusable or cannot be compared, and for a bad threshold.
    """
    from pytest_attn.gate import NotComparable, common_shift, compare
    from pytest_attn.gate.terminal import notes

    allow = {name.strip() for name in arguments.allow.split(",")} if arguments.allow else set()
    if unknown := sorted(allow - set(_MAY_DIFFER)):
        raise UserError(f"--allow: {unknown[0]!r} is not one of {', '.join(_MAY_DIFFER)}")
    settings = gate_output.settings(arguments, Path())
    base, head = read_run(arguments.base), read_run(arguments.head)
    try:
        if settings.noise is not None:
            settings.noise.refuse_other(head)
        verdicts = compare(base, head, settings.stored, allow=allow, control=arguments.control)
    except NotComparable as error:
        hint = f"; --allow {','.join(error.names)} compares them all the same" if error.names else ""
        raise UserError(f"{error}{hint}") from None
    shift = common_shift(verdicts, settings.stored)
    return gate_output.deliver(
        verdicts,
        settings.stored,
        arguments,
        notes=notes(base, head, shift),
        fail_on_lost=settings.fail_on_lost,
        base=base.source,
        head=head.source,
        common_shift=shift,
    )
