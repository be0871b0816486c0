"""The noise floor: how far apart a tree is from itself, cell by cell, as the gate measures it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from pytest_attn.gate.verdict import TIME, Verdict
from pytest_attn.text import seconds, table


def noise_floor(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Return what the pairs of each cell say when both sides are the same tree, the noisiest cell first.

    ``seconds`` is the median; the others are shares of it, from the logarithms of the pairs' ratios: ``median`` how far
    the pairs' median is off, ``pair_sd`` their standard deviation (``None`` of one pair), ``worst_pair`` the largest.
    """
    found = []
    for verdict in verdicts:
        if verdict.metric != TIME or not verdict.ratios:
            continue
        logs = [math.log(ratio) for ratio in verdict.ratios]
        found.append(
            {
                "impl": verdict.impl,
                "problem_id": verdict.problem_id,
                "direction": verdict.direction,
                "verdict": verdict.outcome.value,
                "pairs": len(logs),
                "seconds": verdict.base,
                "median": abs(statistics.median(logs)),
                "pair_sd": statistics.stdev(logs) if len(logs) > 1 else None,
                "worst_pair": max(map(abs, logs)),
            }
        )
    return sorted(found, key=lambda cell: -cell["median"])


def noise_table(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a table of what :func:`noise_floor` found."""
    header = ("implementation", "problem", "direction", "time", "median", "pair sd", "worst pair", "verdict")
    rows = [
        (
            *(cell["impl"], cell["problem_id"], cell["direction"], seconds(cell["seconds"])),
            *(_percent(cell[name]) for name in ("median", "pair_sd", "worst_pair")),
            cell["verdict"],
        )
        for cell in cells
    ]
    return table(header, rows, right=(3, 4, 5, 6))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
