"""A map of shapes: which implementation is fastest where, and by how much."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd
from matplotlib.patches import Rectangle

from pytest_attn.report.draw import Margins, Panel, Sheet, sheet
from pytest_attn.report.figures.marks import Name, fill, names
from pytest_attn.report.frame import run_letter
from pytest_attn.report.planes import Plane
from pytest_attn.report.style import FAINT, INK, PAPER, RULE, look
from pytest_attn.report.sweeps import masks_of
from pytest_attn.report.words import DIRECTIONS, count, mask_words, short, times

_CELL, _MOST_PANELS = 0.36, 4


def fastest_sheet(plane: Plane, direction: str) -> Sheet | None:
    """Draw a cell a shape: mark and tint of the fastest series, and its lead over the second as a factor.

    ``≈`` stands where the p10-p90 spreads of the two overlap, ``–`` where no second was measured. ``None`` where
    nothing was measured in that direction.
    """
    rows = plane.frame[(plane.frame["direction"] == direction) & plane.frame["ok"] & (plane.frame["time"] > 0)]
    if rows.empty:
        return None
    # A run at a time: what is fastest on one machine says nothing of another, and no implementation leads over itself.
    masks = list(masks_of(rows)[:_MOST_PANELS]) if plane.kind.masks else [""]
    found = sorted({int(number) for number in rows["run_number"]})
    runs = found[: max(1, _MOST_PANELS // len(masks))]
    parts = [(run, mask) for run in runs for mask in masks]
    widest = max(len(plane.row_label(row)) for row in plane.rows)
    made = sheet(
        f"fastest-by-shape-{direction.replace('_', '-')}",
        f"Which is fastest {DIRECTIONS[direction]} at which shape?",
        plane.fixed,
        [_title(mask, run_letter(run) if len(found) > 1 else "") for run, mask in parts],
        0.95 + _CELL * len(plane.rows),
        Margins(left=min(1.75, 0.3 + (0.075 if widest <= 12 else 0.062) * widest), bottom=0.5),
    )
    for panel, (run, mask) in zip(made.panels, parts, strict=True):
        here = rows[rows["run_number"] == run]
        panel.mask = mask
        _draw(made, panel, here[here["mask"] == mask] if mask else here, plane)
    made.notes.append("Mark: the fastest; number: the second's time over its own; ≈: their p10–p90 spreads overlap.")
    made.key.append("–: no second to compare")
    if len(found) > len(runs):
        made.notes.append(f"{count(len(found) - len(runs), 'run')} more in results.csv.")
    if plane.left_out:
        made.notes.append(f"{count(plane.left_out, 'cell')} of this plane are in results.csv only.")
    return made


def _title(mask: str, run: str) -> str:
    return ", ".join(["Lead over the second", *([f"{mask_words(mask)} mask"] if mask else []), *([run] if run else [])])


def ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the fastest record of each problem in ``rows`` (``ok``, one run and direction), with three columns more.

    ``second`` is the series that comes next, ``lead`` its median over the first's, both missing where there is none;
    ``level`` tells whether their spreads overlap.
    """
    order = rows.sort_values(["problem_id", "time", "series"], kind="stable")
    order = order.drop_duplicates(["problem_id", "impl"])  # of two records of one case, the better
    place = order.groupby("problem_id").cumcount()
    first = order[place == 0].set_index("problem_id", drop=False)
    second = order[place == 1].set_index("problem_id").reindex(first.index)
    level = second["time_p10"] <= first["time_p90"]
    return first.assign(second=second["series"], lead=second["time"] / first["time"], level=level)


def _draw(made: Sheet, panel: Panel, rows: pd.DataFrame, plane: Plane) -> None:
    ax, best = panel.ax, ranked(rows)
    cells = {
        (tuple(row[name] for name in plane.kind.row), tuple(row[name] for name in plane.kind.column)): row
        for row in best.to_dict("records")
    }
    wins: Counter[str] = Counter()
    named: dict[str, dict[Any, Any]] = {}
    said = []
    for y, row in enumerate(plane.rows):
        for x, column in enumerate(plane.columns):
            cell: dict[Any, Any] | None = cells.get((row, column))
            where = f"{plane.row_label(row)} {plane.column_label(column)}"
            if cell is None:
                ax.add_patch(Rectangle((x, y), 1, 1, facecolor="none", edgecolor=RULE, linewidth=0.6))
                ax.text(x + 0.5, y + 0.5, "·", size=8, color=FAINT, ha="center", va="center_baseline")
                continue
            style, series = look(str(cell["impl"])), str(cell["series"])
            wins[series] += 1
            named[series] = cell
            gid = f"{panel.gid}-cell-{x}-{y}"
            ax.add_patch(Rectangle((x, y), 1, 1, facecolor=style.light, alpha=0.18, edgecolor="none", gid=gid))
            ax.add_patch(Rectangle((x, y), 1, 1, facecolor="none", edgecolor=PAPER, linewidth=1.5))
            ax.plot([x + 0.5], [y + 0.3], color=style.light, marker=style.marker, ms=5.5, mfc=fill(cell), ls="none")
            # A lead of two digits would be 1.0× where the spreads say that there is one.
            factor = times(cell["lead"], 3 if cell["lead"] < 1.1 else 2) if cell["lead"] > 0 else "–"
            lead = "≈" if cell["level"] else factor
            ax.text(x + 0.5, y + 0.74, lead, size=7.5, color=INK, ha="center", va="center_baseline")
            second = f" over {short(cell['second'], 40)}" if cell["lead"] > 0 else ""
            words = f"level with {short(cell['second'], 40)}" if cell["level"] else f"{lead}{second}"
            made.hints[gid] = f"{where}: {short(series, 40)}, {words}"
            said.append(f"{where}: {short(series)} {lead}")
    ax.set_xlim(0, len(plane.columns))
    ax.set_ylim(len(plane.rows), 0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=0, labelsize=8, labelcolor=INK)
    crowded = max(len(plane.column_label(column)) for column in plane.columns) > 5
    ax.set_xticks([x + 0.5 for x in range(len(plane.columns))], [plane.column_label(c) for c in plane.columns])
    if crowded:
        ax.tick_params(axis="x", labelsize=6.5, rotation=30)
    if max(len(plane.row_label(row)) for row in plane.rows) > 12:
        ax.tick_params(axis="y", labelsize=7)
    ax.set_yticks([y + 0.5 for y in range(len(plane.rows))], [plane.row_label(row) for row in plane.rows])
    step = 0.166 / (_CELL * len(plane.rows))
    ordered = sorted(wins, key=lambda series: (-wins[series], series))
    labels = [Name.of(named[series], (1.0, 1 - step * (i + 0.5))) for i, series in enumerate(ordered)]
    names(made, panel, labels, leaders=False)
    won = ", ".join(f"{short(series)} {count(wins[series], 'time')}" for series in ordered)
    panel.alt = f"{made.title} {panel.title}, {plane.fixed}. Fastest: {won or 'nothing measured'}. {'; '.join(said)}."
