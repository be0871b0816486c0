"""``attn gate run --base REF -- <pytest args>``: two trees, measured in turns."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from pytest_attn.commands import gate_output, gate_pairs

HELP = "measure two commits in turns and judge the second by the first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``attn gate run`` takes."""
    parser.add_argument("--base", required=True, metavar="REF", help="the commit to compare with")
    parser.add_argument("--head", metavar="REF", help="the commit to judge (default: the working tree as it is)")
    gate_pairs.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, judge and print; return 1 when a cell is slower, otherwise 0.

    Raises :class:`UserError` for a side that cannot be measured, and for options that cannot be used.
    """
    from pytest_attn.gate import common_shift
    from pytest_attn.gate.process import Side
    from pytest_attn.gate.terminal import notes
    from pytest_attn.gate.worktree import commit_of, repository, working_tree, worktree

    with gate_pairs.sentences(), contextlib.ExitStack() as stack:
        here = repository(Path.cwd())
        settings = gate_output.settings(arguments, here.top)
        base = commit_of(here.top, arguments.base)
        head = working_tree(here.top) if arguments.head is None else commit_of(here.top, arguments.head)
        folder = stack.enter_context(gate_pairs.opened(arguments, settings, "run", base, head, here.prefix))
        checkouts = [stack.enter_context(worktree(here.top, base, folder.path / ".base")), here.top]
        if arguments.head is not None:
            checkouts[1] = stack.enter_context(worktree(here.top, head, folder.path / ".head"))
        sides = [
            Side(name, commit, checkout, here.prefix)
            for name, commit, checkout in zip(("base", "head"), (base, head), checkouts, strict=True)
        ]
        measured = gate_pairs.measure(folder, sides[0], sides[1], settings, arguments)
        shift = common_shift(measured.verdicts, settings.paired)
        pair = measured.pairs[-1]
        same = ["note: base and head are the same commit; whatever moved here is noise"] if base == head else []
        gate_pairs.name_files(arguments, folder.path)
        code = gate_output.deliver(
            measured.verdicts,
            settings.paired,
            arguments,
            notes=[*same, *notes(pair.base, pair.head, shift, stored=False)],
            fail_on_lost=settings.fail_on_lost,
            base=base,
            head=head,
            pairs=len(measured.pairs),
            common_shift=shift,
        )
        gate_pairs.remember(arguments, folder, measured, code)
        return code
