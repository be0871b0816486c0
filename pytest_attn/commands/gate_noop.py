"""``attn gate noop -- <pytest args>``: the working tree against itself, to learn how far the gate can be trusted."""

from __future__ import annotations

import argparse
from pathlib import Path

from pytest_attn.commands import gate_output, gate_pairs
from pytest_attn.commands.files import write_json

HELP = "measure the working tree against itself: the noise floor of each cell, exit 1 when one alarms"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``attn gate noop`` takes."""
    gate_pairs.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, judge as ``attn gate run`` does, and print the noise; return 1 when a cell is called slower.

    Raises :class:`UserError` for a tree that cannot be measured, and for options that cannot be used.
    """
    from pytest_attn.gate.noise import noise_document, noise_floor, noise_table
    from pytest_attn.gate.process import Side
    from pytest_attn.gate.worktree import repository, working_tree

    with gate_pairs.sentences():
        here = repository(Path.cwd())
        settings = gate_output.settings(arguments, here.top)
        tree = working_tree(here.top)
        with gate_pairs.opened(arguments, settings, "noop", tree, tree, here.prefix) as folder:
            base, head = (Side(name, tree, here.top, here.prefix) for name in ("base", "head"))
            measured = gate_pairs.measure(folder, base, head, settings, arguments)
            cells = noise_floor(measured.verdicts)
            noise = noise_document(tree, measured.pairs[0].head.machine, len(measured.pairs), cells)
            write_json(folder.path / "noise.json", noise)
            print(*noise_table(cells), sep="\n")
            gate_pairs.name_files(arguments, folder.path)
            code = gate_output.deliver(
                measured.verdicts,
                settings.paired,
                arguments,
                notes=["note: both sides are the same tree; whatever moved here is noise"],
                fail_on_lost=settings.fail_on_lost,
                base=tree,
                head=tree,
                pairs=len(measured.pairs),
            )
            gate_pairs.remember(arguments, folder, measured, code)
            return code
