"""The command ``attn``. Importing it imports neither torch nor matplotlib; each subcommand does when it runs."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import pytest_attn
from pytest_attn.commands import doctor, gate, history, lab5, listing, merge, profile, report
from pytest_attn.commands.errors import UserError

COMMANDS = {
    "doctor": doctor,
    "list": listing,
    "report": report,
    "gate": gate,
    "history": history,
    "merge": merge,
    "profile": profile,
    "lab5": lab5,
}

_USAGE, _INTERRUPTED, _BROKEN_PIPE = 2, 130, 141  # the latter two as a shell counts a signal: 128 + its number


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``attn`` and return its exit code.

    Args:
        argv: the arguments after the program's name; ``None`` takes them from ``sys.argv``.

    Returns:
        0 when all is well, 1 when the subcommand found what it looks for (a slower cell, a missing torch, a failed
        measurement), 2 for input that cannot be used, 130 after Ctrl-C, 141 when the reader of a pipe left.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A reason with a character that the terminal's encoding lacks must not end the command.
        sys.stdout.reconfigure(errors="replace")
    try:
        code = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
        return _BROKEN_PIPE
    return code


def _run(argv: Sequence[str] | None) -> int:
    name = "attn"
    try:
        arguments = _parser().parse_args(argv)
        name = f"attn {arguments.command}"
        code: int = COMMANDS[arguments.command].run(arguments)
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return _USAGE
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except SystemExit as stop:  # argparse ends --help, --version and every usage error so
        return stop.code if isinstance(stop.code, int) else _USAGE
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="attn", description=pytest_attn.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"pytest-attn {pytest_attn.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False))
    return parser


def _forget_stdout() -> None:
    """Point standard output at nothing, so that Python's own flush at exit has no pipe to complain about."""
    with contextlib.suppress(OSError, ValueError):  # no file behind it, as under pytest
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


if __name__ == "__main__":
    sys.exit(main())
