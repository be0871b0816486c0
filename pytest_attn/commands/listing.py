"""``attn list``: the implementations and what they claim, the grids, the problems of a grid."""

from __future__ import annotations

import argparse
import inspect
from typing import TYPE_CHECKING

from pytest_attn.commands.arguments import problems_of
from pytest_attn.probe import state_of
from pytest_attn.text import count, printable, table

if TYPE_CHECKING:
    from attn_impls import Capabilities

HELP = "list implementations and what they claim, or grids, or the problems of one grid"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``attn list`` takes."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--grid", metavar="NAME|FILE.toml", help="list the problems of this grid")
    what.add_argument("--grids", action="store_true", help="list the grids")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="only what runs there; with --grid, how many implementations take it"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the list asked for.

    Raises :class:`UserError` for an unknown or unreadable grid.
    """
    if arguments.grids:
        lines = _grids()
    elif arguments.grid is not None:
        lines = _problems(arguments.grid, arguments.device)
    else:
        lines = _implementations(arguments.device)
    print(*lines, sep="\n")
    return 0


def _grids() -> list[str]:
    from attn_impls.grids import GRIDS

    rows = []
    for name, problems in GRIDS.items():
        # The docstrings are sentences about what the function returns; here they stand as descriptions.
        described = (inspect.getdoc(problems) or "").partition("\n")[0].removeprefix("Return ").rstrip(".")
        rows.append((name, str(len(problems())), described))
    return table(("grid", "problems", "what"), rows, right=(1,))


def _problems(grid: str, device: str | None) -> list[str]:
    from attn_impls import Direction, discover

    problems = problems_of(grid)
    header, rows = ["problem", "GFLOP fwd", "GFLOP bwd", "least MB fwd"], []
    for problem in problems:
        flops = (problem.flops(direction) / 1e9 for direction in (Direction.FWD, Direction.BWD))
        rows.append([problem.id, *(f"{value:.3f}" for value in flops), f"{problem.min_bytes() / 1e6:.2f}"])
    if device is not None:
        header.append(f"taken by, on {device}")
        claims = [implementation.capabilities for implementation in discover().values()]
        for problem, row in zip(problems, rows, strict=True):
            taken = sum(claim.why_not(problem, Direction.FWD, device) is None for claim in claims)
            row.append(f"{taken} of {len(claims)}")
    return [*table(header, rows, right=(1, 2, 3, 4)), count(len(problems), "problem")]


def _implementations(device: str | None) -> list[str]:
    from attn_impls import discover

    registry = discover()
    rows, summaries = [], []
    reasons: dict[str, list[str]] = {}  # many lack the same
    for name, implementation in registry.items():
        claims = implementation.capabilities
        if device is not None and device not in claims.devices:
            continue
        state, reason = state_of(implementation, device)
        if reason is not None:
            reasons.setdefault(f"{state}, {reason}", []).append(name)
        if implementation.summary:
            summaries.append((name, implementation.summary.rstrip(".")))
        dtypes = [dtype for dtype in ("fp32", "bf16", "fp16") if dtype in claims.dtypes]
        rows.append(
            (
                name,
                state,
                ",".join(sorted(claims.devices)),
                ",".join(dtypes),
                str(claims.head_dims),
                ",".join(sorted(claims.masks)),
                ",".join(_also(claims)),
            )
        )
    lines = table(("implementation", "state", "devices", "dtypes", "head dim", "masks", "also"), rows)
    if summaries:
        lines += ["", *table(("implementation", "what it is"), summaries)]
    notes = [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
    notes += [f"entry point {name}: broken, {reason}" for name, reason in registry.broken.items()]
    return [*lines, *([""] if notes else []), *map(printable, notes)]


def _also(claims: Capabilities) -> list[str]:
    named = ("backward", "gqa", "rectangular", "softcap", "deterministic", "returns_lse")
    return [name.removeprefix("returns_") for name in named if getattr(claims, name)]
