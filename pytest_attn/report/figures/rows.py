"""A row an implementation, a value and its range on one axis: what dot charts share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from pytest_attn.report import axes as scales
from pytest_attn.report.draw import Panel, Sheet
from pytest_attn.report.figures.marks import fill
from pytest_attn.report.style import FAINT, INK, PAPER, RULE, look
from pytest_attn.report.words import clean, short, slug

ROW, MOST_ROWS = 0.29, 24
_CHARACTER = 0.073  # inches of a character of text, on the wide side
_TICK = 0.32  # inches between the middles of two labels of factors


@dataclass(frozen=True, slots=True)
class Dot:
    """A row: a record of its series, a value with its range, a second value ``other`` where there is one, a text."""

    row: Mapping[Hashable, Any] | pd.Series
    value: float
    low: float
    high: float
    text: str
    other: float | None = None
    label: str = ""

    @property
    def series(self) -> str:
        """Whose it is."""
        return str(self.row["series"])

    @property
    def name(self) -> str:
        """What stands before the row."""
        return self.label or short(self.row["tag"], 17)


def draw_dots(
    made: Sheet, panel: Panel, dots: Sequence[Dot], show: Callable[[float, int], str], *, ratio: bool = False
) -> None:
    """Draw ``dots`` from the top, on a log axis, or on one of factors around 1; texts stand right of the values."""
    ax = panel.ax
    scales.dress(ax)
    ax.spines["left"].set_visible(False)
    ends = [end for dot in dots for end in (dot.low, dot.high, dot.value, dot.other) if end is not None and end > 0]
    low, high = min(ends), max(ends)
    # What lies left of the texts is the share that the longest of them leaves.
    figure = ax.get_figure(root=True)
    inches = ax.get_position().width * (figure.get_figwidth() if figure else 1.0)
    room = 1 / (1 - min(0.75, (max(len(dot.text) for dot in dots) * _CHARACTER + 0.2) / inches))
    if ratio:
        low, high = min(low, 1.0) / 1.05, max(high, 1.0) * 1.05
        high = low + (high - low) * room if high / low <= 3 else low * (high / low) ** room
        scales.ratios_axis(ax, low, high, most=4)
        ax.axvline(1.0, color=FAINT, linewidth=1.0)
    else:
        low /= 1.5
        high = low * max(high / low, 3.0) ** room
        scales.log_values_axis(ax, low, high, show, 10, along="x", most=4)
    # Ticks only where values are: right of them stand the texts.
    ticks = [tick for tick in ax.get_xticks() if tick <= max(ends) * 1.02]
    if ratio:  # one at 1 in any case, and none whose label would stand on its own
        at = ax.transAxes.inverted().transform(ax.transData.transform([(tick, 0.0) for tick in (1.0, *ticks)]))[:, 0]
        ticks = [tick for tick, x in zip(ticks, at[1:], strict=True) if abs(x - at[0]) * inches > _TICK]
    ax.xaxis.set_major_locator(FixedLocator([*([1.0] if ratio else []), *ticks]))
    for y, dot in enumerate(dots):
        _row(made, panel, ax, y, dot)
    ax.set_yticks(range(len(dots)), [dot.name for dot in dots])
    for y, (label, dot) in enumerate(zip(ax.get_yticklabels(), dots, strict=True)):
        label.set_gid(made.mark(f"{panel.gid}-label-{y}-{slug(dot.series)}", dot.series))
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    ax.set_ylim(len(dots) - 0.4, -0.6)


def _row(made: Sheet, panel: Panel, ax: Axes, y: int, dot: Dot) -> None:
    style, gid = look(str(dot.row["impl"])), made.mark(f"{panel.gid}-dot-{y}-{slug(dot.series)}", dot.series)
    bar: dict[str, Any] = {"color": style.light, "gid": made.mark(f"{gid}-spread", dot.series)}
    left, right = ax.get_xlim()
    ax.plot([left, right], [y, y], color=RULE, linewidth=0.5, zorder=1)
    ax.plot([dot.low, dot.high], [y, y], **bar, linewidth=3.2, alpha=0.45, solid_capstyle="butt")
    end = max(dot.high, dot.value)
    if dot.other is not None:
        ax.plot(
            [dot.value, dot.other],
            [y, y],
            color=style.light,
            linewidth=1.0,
            gid=made.mark(f"{gid}-between", dot.series),
        )
        other = made.mark(f"{gid}-other", dot.series)
        ax.plot([dot.other], [y], color=style.light, gid=other, marker=style.marker, ms=6, mfc=PAPER, ls="none")
        end = max(end, dot.other)
    mark: dict[str, Any] = {"color": style.light, "marker": style.marker, "ms": 6, "ls": "none"}
    ax.plot([dot.value], [y], **mark, mfc=fill(dot.row), gid=gid)
    made.hints[gid] = f"{clean(dot.label or dot.series)}: {dot.text}"
    ax.annotate(
        dot.text,
        (end, y),
        xytext=(8, 0),
        textcoords="offset points",
        size=9,
        color=INK,
        va="center_baseline",
        gid=made.mark(f"{gid}-value", dot.series),
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6},
    )
