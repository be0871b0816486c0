"""The sheet that figures are drawn on: a title that asks, panels side by side, a key, and a text for each panel.

No pyplot: figures are plain objects, so nothing is left behind in the process that calls the library. Lengths are
inches laid out by hand: panels are then alike, quick to draw, and the same bytes every time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pytest_attn.report.style import FAINT, INK, PAPER

PANEL_W = 4.4
_TITLE, _KEY, _COLUMNS = 0.62, 0.36, 2

HOLLOW = "noisy or host-bound, not compared"

# mathtext is off because names come from others: "$" is a character, never markup. Text stays text in the SVG, so
# that the page can set it in its own font and readers can search it.
_RC: Any = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "pytest-attn",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.unicode_minus": True,
    "path.simplify": False,
}


@dataclass(frozen=True, slots=True)
class Margins:
    """Inches around the axes of a panel: the labels live there."""

    left: float = 0.7
    right: float = 1.28
    top: float = 0.36
    bottom: float = 0.52


@dataclass(slots=True)
class Panel:
    """One panel: ``gid`` is its SVG group, ``box`` its x, y, width, height in points from the upper left corner."""

    ax: Axes
    gid: str
    box: tuple[float, float, float, float]
    title: str
    alt: str = ""
    mask: str = ""
    """The mask it is about, so that a page can show those of one mask; empty where it is about all."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Whose an SVG element is, and what its points are, in the order they are drawn: rows of the records' table."""

    series: str
    records: tuple[int, ...] = ()


@dataclass(slots=True)
class Sheet:
    """A figure with what a page needs to show it: ``name`` is its file name, ``notes`` what the caption must say."""

    figure: Figure
    name: str
    title: str
    subtitle: str
    panels: list[Panel]
    hints: dict[str, str] = field(default_factory=dict)
    """Text to show on hovering over the SVG element of that id."""
    marks: dict[str, Mark] = field(default_factory=dict)
    """What a page hides with its series, and whose values it shows, by the id of the SVG element."""
    notes: list[str] = field(default_factory=list)
    key: list[str] = field(default_factory=list)
    """What the marks mean, for a page that leaves out the strip with the key."""

    def mark(self, gid: str, series: str, records: Iterable[Any] = ()) -> str:
        """Say that the element ``gid`` belongs to ``series`` and shows ``records``; return ``gid``."""
        self.marks[gid] = Mark(series, tuple(int(record) for record in records))
        return gid


@contextmanager
def settings() -> Iterator[None]:
    """Draw and save under our settings, whatever the process or a matplotlibrc has set."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        yield


def sheet(name: str, title: str, subtitle: str, panels: Sequence[str], height: float, margins: Margins) -> Sheet:
    """Return an empty sheet with a panel of ``height`` inches for each title in ``panels``, two in a row."""
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    # A lone panel still needs the width of its title.
    width, full = max(columns * PANEL_W, 7.2), rows * height + _TITLE + _KEY
    figure = Figure(figsize=(width, full), facecolor=PAPER)
    lines: Sequence[tuple[str, float, float, dict[str, Any]]] = (
        (title, 12.5, 0.24, {"color": INK, "weight": "bold"}),
        (subtitle, 9.0, 0.46, {"color": FAINT}),
    )
    for text, size, down, style in lines:
        # What is too long for the sheet is set smaller; a bold character is two thirds of its size wide on average.
        fits = min(size, (width - 0.32) * 72 / (0.66 * max(1, len(text))))
        figure.text(0.16 / width, 1 - down / full, text, size=fits, va="center", **style)
    made = []
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        left, top = column * PANEL_W, _TITLE + row * height
        inner_w = PANEL_W - margins.left - margins.right
        inner_h = height - margins.top - margins.bottom
        bottom = full - top - height + margins.bottom
        ax = figure.add_axes(((left + margins.left) / width, bottom / full, inner_w / width, inner_h / full))
        ax.set_facecolor("none")
        ax.set_gid(f"panel-{number}")
        # A height that is given spares matplotlib a search for one, a tenth of the time of a figure.
        ax.set_title(panel, loc="left", size=10, color=INK, pad=8, x=(0.16 - margins.left) / inner_w, y=1.0)
        box = (left * 72, top * 72, PANEL_W * 72, height * 72)
        made.append(Panel(ax, f"panel-{number}", box, panel))
    return Sheet(figure, name, title, subtitle, made)


def key(
    sheet: Sheet, *, spread: bool = False, oom: bool = False, hollow: bool = False, predicted: bool = False
) -> None:
    """Write under the panels what the marks mean that are not named where they stand."""
    bar: Any = {"marker": "|", "markersize": 9, "markeredgewidth": 3}
    meanings: Sequence[tuple[bool, dict[str, Any], str, str]] = (
        (spread, bar, "bar", "p10–p90"),
        (oom, {"marker": "x", "markersize": 6, "markeredgewidth": 2}, "×", "out of memory"),
        (predicted, {"marker": ".", "markersize": 4, "linestyle": ":"}, "dotted", "predicted, not measured"),
        (hollow, {"marker": "o", "markersize": 5, "markerfacecolor": "none"}, "hollow", HOLLOW),
    )
    shown = [(mark, sign, text) for wanted, mark, sign, text in meanings if wanted]
    if not shown:
        return
    sheet.key += [f"{sign}: {text}" for _, sign, text in shown]
    legend = sheet.figure.legend(
        handles=[Line2D([], [], **({"color": FAINT, "linestyle": "none"} | mark)) for mark, _, _ in shown],
        labels=[text for _, _, text in shown],
        loc="lower left",
        ncols=len(shown),
        frameon=False,
        fontsize=9,
        labelcolor=FAINT,
        borderaxespad=0.6,
        handletextpad=0.3,
    )
    legend.set_gid("key")
