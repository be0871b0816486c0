"""``attn gate run | compare | noop``: a verdict for every cell, exit code 1 when one is slower."""

from __future__ import annotations

import argparse

from pytest_attn.commands import gate_compare, gate_noop, gate_run

HELP = "tell whether anything got slower; exit 1 when a cell is, 2 when that cannot be told"

_COMMANDS = {"run": gate_run, "compare": gate_compare, "noop": gate_noop}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the three commands."""
    commands = parser.add_subparsers(dest="gate", required=True, metavar="run|compare|noop")
    for name, module in _COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False))


def run(arguments: argparse.Namespace) -> int:
    """Run the command that was named and return its exit code; :class:`UserError` for what cannot be used."""
    code: int = _COMMANDS[arguments.gate].run(arguments)
    return code
