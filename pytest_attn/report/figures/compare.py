"""Two runs: by how much each implementation moved, and the cells that moved most."""

from __future__ import annotations

from pytest_attn.report.draw import Margins, Sheet, key, sheet
from pytest_attn.report.figures.rows import MOST_ROWS, ROW, Dot, draw_dots
from pytest_attn.report.run_pairs import RunPair, by_implementation
from pytest_attn.report.words import DIRECTIONS, clean, count, digits, short, times

_CHANGES = 6  # gains, and as many losses


def compare_sheet(pair: RunPair, direction: str) -> Sheet | None:
    """Draw the speed-up of the later run over the first: by implementation, and the largest clear gains and losses.

    ``None`` where the two have no ``ok`` cell in common in that direction.
    """
    cells = pair.cells[pair.cells["direction"] == direction]
    if cells.empty:
        return None
    a, b = pair.letters
    table = by_implementation(cells)
    one = cells.drop_duplicates("impl").set_index("impl", drop=False)
    dots = [
        Dot(
            one.loc[row["impl"]],
            row["median"],
            row["least"],
            row["most"],
            f"{times(row['median'], 3)} over {count(row['cells'], 'cell')}",
        )
        for row in table.to_dict("records")
    ]
    changed = pair.changes(direction, _CHANGES).to_dict("records")
    changes = [
        Dot(
            row,
            row["ratio"],
            row["low"],
            row["high"],
            times(row["ratio"], 3),
            label=f"{short(row['impl'], 14)} {short(row['label'], 26)}",
        )
        for row in changed
    ]
    left_out, dots = dots[MOST_ROWS:], dots[:MOST_ROWS]
    titles = ["Speed-up: median cell, least to most", *(["Largest clear gains and losses"] if changes else [])]
    made = sheet(
        f"speed-up-{b.lower().strip('#')}-over-{a.lower().strip('#')}-{direction.replace('_', '-')}",
        f"What is faster {DIRECTIONS[direction]} in {b} than in {a}?",
        f"{b}: {short(pair.after, 60)}; {a}: {short(pair.before, 60)}; above 1× {b} is faster",
        titles,
        0.95 + ROW * max(len(dots), len(changes)),
        Margins(left=2.4 if changes else 1.25, right=0.14, bottom=0.46),
    )
    for panel, shown in zip(made.panels, (dots, changes), strict=False):
        draw_dots(made, panel, shown, digits, ratio=True)
        said = "; ".join(f"{clean(dot.name)} {dot.text}" for dot in shown)
        panel.alt = f"{made.title} {panel.title}. {said}."
    if changes:
        made.panels[1].ax.tick_params(axis="y", labelsize=7)
    key(made, spread=bool(changes))
    if not changes:
        made.notes.append("No cell changed clearly: the p10–p90 spreads of all pairs overlap.")
    if pair.unpaired:
        made.notes.append(f"{count(pair.unpaired, 'cell')} measured in one of the two runs only, in any direction.")
    if left_out:
        made.notes.append(f"{count(len(left_out), 'implementation')} more in the table.")
    return made
