"""Marks that several kinds of figures share: names at the right edge, and where memory ran out."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from pytest_attn.report import axes as scales
from pytest_attn.report.draw import Panel, Sheet
from pytest_attn.report.style import INK, PAPER, look
from pytest_attn.report.words import short, slug

_LABEL_INCHES = 0.166  # from one name to the next


@dataclass(frozen=True, slots=True)
class Name:
    """What stands at the right edge for one series, and the place of its point in shares of the axes."""

    series: str
    tag: str
    impl: str
    later: bool
    x: float
    y: float

    @classmethod
    def of(cls, row: Mapping[Hashable, Any] | pd.Series, at: tuple[float, float]) -> Name:
        """Name the series of ``row`` at that place."""
        return cls(str(row["series"]), str(row["tag"]), str(row["impl"]), bool(row["run_number"] > 0), *at)


def fill(row: Mapping[Hashable, Any] | pd.Series) -> str:
    """Return what fills the marks of a row's series: its colour in the first run, nothing in a later one."""
    return look(str(row["impl"])).light if row["run_number"] == 0 else PAPER


def spreads(
    ax: Axes, x: Iterable[float], low: Iterable[float], high: Iterable[float], colour: str, width: float
) -> LineCollection:
    """Draw a bar from ``low`` to ``high`` at each ``x``; the scales are set already and stay as they are."""
    segments = [[(at, bottom), (at, top)] for at, bottom, top in zip(x, low, high, strict=True)]
    made = LineCollection(segments, colors=colour, linewidths=width, alpha=0.45)
    ax.add_collection(made, autolim=False)
    return made


def share(value: float, limits: tuple[float, float], scale: str) -> float:
    """Return where ``value`` lies between ``limits``, 0 to 1, on an axis of that scale."""
    low, high = limits
    if scale == "log":
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def place(ax: Axes, x: float, y: float) -> tuple[float, float]:
    """Return where the point (x, y) lies in shares of the axes."""
    return share(x, ax.get_xlim(), ax.get_xscale()), share(y, ax.get_ylim(), ax.get_yscale())


def names(made: Sheet, panel: Panel, labels: Sequence[Name], *, leaders: bool = True) -> None:
    """Name series at the right edge, with a thin leader from a point of each, so that no legend is needed."""
    ax = panel.ax
    figure = ax.get_figure(root=True)
    inches = ax.get_position().height * (figure.get_figheight() if figure else 1.0)
    heights = scales.spread_labels([label.y for label in labels], _LABEL_INCHES / inches, 0.0, 1.0)
    crowded = len(labels) * _LABEL_INCHES > inches * 1.15
    for label, height in zip(labels, heights, strict=True):
        style, box = look(label.impl), ax.transAxes
        mark: dict[str, Any] = {
            "marker": style.marker,
            "markersize": 4.2,
            "markerfacecolor": PAPER if label.later else style.light,
            "markevery": [2],
            "clip_on": False,
            "transform": box,
        }
        gid = f"{panel.gid}-label-{slug(label.series)}"
        ends: dict[str, Any] = {"color": style.light, "linewidth": 0.5 * leaders, "gid": f"{gid}-leader"}
        ax.plot([label.x, 1.03, 1.06], [label.y, height, height], **ends, **mark)
        size = 6.5 if crowded else 9
        ax.text(1.09, height, short(label.tag, 16), size=size, color=INK, va="center_baseline", transform=box, gid=gid)
        if leaders:  # else they are a key to what stays
            made.mark(gid, label.series)
            made.mark(f"{gid}-leader", label.series)


def out_of_memory(ax: Axes, value: float, height: float, colour: str, gid: str, side: str) -> None:
    """Draw an × over ``value`` at ``height``, a share of the axes; ``side`` of the word is left, right or none."""
    mark: dict[str, Any] = {
        "marker": "x",
        "markersize": 6.0,
        "markeredgewidth": 2.0,
        "linestyle": "none",
        "clip_on": False,
    }
    ax.plot([value], [height], color=colour, transform=ax.get_xaxis_transform(), gid=gid, **mark)
    if side == "none":
        return
    left = side == "left"
    ax.annotate(
        "OOM",
        (value, height),
        xycoords=ax.get_xaxis_transform(),
        xytext=(-6 if left else 6, 0),
        textcoords="offset points",
        size=8,
        color=INK,  # the colours of series are for marks: as text some are too faint to read
        weight="bold",
        gid=f"{gid}-word",
        ha="right" if left else "left",
        va="center_baseline",
    )
