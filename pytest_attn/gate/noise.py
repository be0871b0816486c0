"""The noise floor: how far apart a tree is from itself, cell by cell, as the gate measures it.

``attn gate noop`` writes it to a file; the gates of the same machine read it and ask more of a cell that is noisy.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_attn.gate.comparable import NotComparable, changes
from pytest_attn.gate.thresholds import Thresholds
from pytest_attn.gate.verdict import TIME, Verdict
from pytest_attn.perf.record import Run
from pytest_attn.text import count, seconds, table

SCHEMA = 2

# The standard error of the median of n normal values, by their median absolute deviation: sqrt(pi / 2) / sqrt(n), and
# 1.4826 times the deviation for the standard deviation. A burst that hit one pair leaves it alone, as it does the rule.
_ERROR_OF_MEDIAN = 1.2533 * 1.4826


class BadNoise(ValueError):
    """A file that holds no noise floors; one sentence that names it."""


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """The file of a no-op gate: its name, its machine, and the floor of each ``"impl problem_id direction"``."""

    source: str
    machine: Mapping[str, Any]
    cells: Mapping[str, float]

    def refuse_other(self, run: Run) -> None:
        """Raise :class:`NotComparable` for a run of another machine; another driver is no reason."""
        found = [change for change in changes(self.machine, run.machine) if not change.startswith("driver: ")]
        if found:
            raise NotComparable(f"the noise of {self.source} is another machine's ({'; '.join(found)})")


def read_noise(path: Path) -> NoiseFloor:
    """Read what :func:`noise_document` gave; :class:`BadNoise` for a file that is missing, damaged or not that."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadNoise(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise BadNoise(f"{path} is not JSON, or was cut short") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or "cells" not in data:
        raise BadNoise(f"{path} is no noise.json of this version's attn gate noop")
    try:
        cells = {f"{c['impl']} {c['problem_id']} {c['direction']}": float(c["floor"]) for c in data["cells"]}
        machine = dict(data["machine"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadNoise(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    if not all(math.isfinite(floor) and floor >= 0 for floor in cells.values()):
        raise BadNoise(f"{path} holds a floor that is negative or not finite")
    return NoiseFloor(str(path), machine, cells)


def noise_document(
    commit: str, machine: Mapping[str, Any], pairs: int, cells: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the JSON form of what :func:`noise_floor` found on ``machine``, in ``pairs`` pairs of ``commit``."""
    return {"schema": SCHEMA, "commit": commit, "machine": dict(machine), "pairs": pairs, "cells": list(cells)}


def raised_note(verdicts: Sequence[Verdict], thresholds: Thresholds) -> list[str]:
    """Return a sentence that says how many cells have a higher threshold for their noise; nothing without floors."""
    if not thresholds.noise:
        return []
    times = [verdict for verdict in verdicts if verdict.metric == TIME and verdict.threshold is not None]
    raised = [limits.relative for each in times if (limits := thresholds.for_cell(each.key)).raised]
    if not raised:
        return [f"note: the noise floor raises the threshold of none of {count(len(times), 'cell')}"]
    most = f"up to {100 * max(raised):.3g} %"
    return [f"note: the noise floor raises the threshold of {len(raised)} of {count(len(times), 'cell')}, {most}"]


def noise_floor(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Return what the pairs of each cell say when both sides are the same tree, the noisiest cell first.

    ``seconds`` is the median; the others are shares of it, from the logarithms of the pairs' ratios: ``median`` how far
    the pairs' median is off, ``pair_sd`` their standard deviation (``None`` of one pair), ``worst_pair`` the largest,
    and ``floor`` the larger one of ``median`` and of the median's standard error: one no-op may be right by luck.
    """
    found = []
    for verdict in verdicts:
        if verdict.metric != TIME or not verdict.ratios:
            continue
        logs = [math.log(ratio) for ratio in verdict.ratios]
        middle = statistics.median(logs)
        deviation = statistics.median(abs(each - middle) for each in logs)
        found.append(
            {
                "impl": verdict.impl,
                "problem_id": verdict.problem_id,
                "direction": verdict.direction,
                "verdict": verdict.outcome.value,
                "pairs": len(logs),
                "seconds": verdict.base,
                "median": abs(middle),
                "floor": max(abs(middle), _ERROR_OF_MEDIAN * deviation / math.sqrt(len(logs))),
                "pair_sd": statistics.stdev(logs) if len(logs) > 1 else None,
                "worst_pair": max(map(abs, logs)),
            }
        )
    return sorted(found, key=lambda cell: -cell["floor"])


def noise_table(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a table of what :func:`noise_floor` found."""
    header = ("implementation", "problem", "direction", "time", "floor", "median", "pair sd", "worst pair", "verdict")
    rows = [
        (
            *(cell["impl"], cell["problem_id"], cell["direction"], seconds(cell["seconds"])),
            *(_percent(cell[name]) for name in ("floor", "median", "pair_sd", "worst_pair")),
            cell["verdict"],
        )
        for cell in cells
    ]
    return table(header, rows, right=(3, 4, 5, 6, 7))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
