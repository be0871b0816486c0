"""A metric along a sweep: one panel a mask, one line an implementation, OOM drawn where it happened."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pytest_attn.report import axes as scales
from pytest_attn.report.draw import Margins, Panel, Sheet, key, sheet
from pytest_attn.report.frame import series_order
from pytest_attn.report.metrics import Metric
from pytest_attn.report.style import FAINT, INK, PAPER, look
from pytest_attn.report.sweeps import Sweep
from pytest_attn.report.words import DIRECTIONS, clean, mask_words, short, slug

_HEIGHT, _MOST_PANELS = 3.4, 4
_LABEL_GAP = 0.066  # of direct labels, as a share of the height of the axes
# The rows of one series in one panel by their x. Plain dictionaries: a figure asks for thousands of single values.
Line = dict[int, dict[Hashable, Any]]

_OOM_TOP, _OOM_STEP, _OOM_BAND = 0.965, 0.065, 0.17


def sweep_sheet(sweep: Sweep, metric: Metric, direction: str) -> Sheet | None:
    """Draw ``metric`` of ``direction`` along ``sweep``; ``None`` when nothing was measured there and nothing ran out.

    Lines join ``ok`` points only and break where a point is missing. An ``oom`` record is an × at the top edge over
    its x. A record that is noisy or host-bound is a hollow mark without a line.
    """
    rows = sweep.frame[sweep.frame["direction"] == direction]
    values = rows[metric.column]
    drawn = rows[(values > 0) & np.isfinite(values)]
    oom = rows[rows["status"] == "oom"]
    if drawn.empty:
        return None
    masks = [mask for mask in sweep.masks if (rows["mask"] == mask).any()]
    title = metric.question.format(direction=DIRECTIONS[direction], axis=sweep.axis.noun)
    made = sheet(
        f"{metric.key}-by-{sweep.axis.key}-{direction.replace('_', '-')}",
        title,
        sweep.fixed,
        [f"{metric.label}, {mask_words(mask)} mask" for mask in masks[:_MOST_PANELS]],
        _HEIGHT,
        Margins(),
    )
    order = series_order(rows)
    for panel, mask in zip(made.panels, masks, strict=False):
        lines = _by_series(rows[rows["mask"] == mask], sweep.axis.column, order)
        _scales(panel.ax, sweep, metric, drawn, has_oom=not oom.empty)
        _lines(made, panel, lines, sweep, metric)
        panel.mask = mask
        panel.alt = f"{title} {panel.title}, {sweep.fixed}. " + _alt(lines, sweep, metric)
    hollow = bool((~drawn["ok"]).any())
    key(made, spread=metric.low is not None, oom=not oom.empty, hollow=hollow)
    made.notes += _notes(rows, values, masks, sweep)
    return made


def _by_series(rows: pd.DataFrame, column: str, order: list[str]) -> dict[str, Line]:
    found: dict[str, Line] = {series: {} for series in order}
    for row in rows.sort_values(column, kind="stable").to_dict("records"):
        found[str(row["series"])].setdefault(int(row[column]), row)  # of two records of one case, the first
    return {series: line for series, line in found.items() if line}


def _scales(ax: Axes, sweep: Sweep, metric: Metric, drawn: pd.DataFrame, *, has_oom: bool) -> None:
    """Give all panels of a sheet the same scales, so that causal can be held against full."""
    scales.dress(ax)
    scales.points_axis(ax, sweep.values)
    ax.set_xlabel(sweep.axis.label, size=9.5, color=FAINT, labelpad=4)
    ends = drawn[[column for column in (metric.column, metric.low, metric.high) if column]]
    low, high = float(ends.min().min()), float(ends.max().max())
    if not metric.log:
        scales.linear_values_axis(ax, high * 1.08 / (1 - _OOM_BAND * has_oom), metric.show, 10)
        return
    low, high = low / 1.3, high * 1.3
    if has_oom:  # room at the top, so that an × does not look like a value
        high *= max(1.5, (high / low) ** (_OOM_BAND / (1 - _OOM_BAND)))
    scales.log_values_axis(ax, low, high, metric.show, metric.base)


def _lines(made: Sheet, panel: Panel, lines: dict[str, Line], sweep: Sweep, metric: Metric) -> None:
    ax, first = panel.ax, sweep.values[0]
    stacked: dict[int, int] = {}
    labels: list[tuple[str, str, float, float]] = []  # series, implementation, x, y in shares of the axes
    for series, line in lines.items():
        one = next(iter(line.values()))
        style, gid = look(one["impl"]), f"{panel.gid}-series-{slug(series)}"
        good = {x: row for x, row in line.items() if row["ok"] and row[metric.column] > 0}
        hollow = {x: row for x, row in line.items() if not row["ok"] and row[metric.column] > 0}
        common: dict[str, Any] = {"color": style.light, "marker": style.marker, "markersize": 5.0}
        if good:
            made.hints[gid] = f"{clean(series)}: {_points(good, metric)}"
            # A point that is missing or failed is a gap: a line through it would claim a value.
            heights = [good[x][metric.column] if x in good else math.nan for x in sweep.values]
            fill = style.light if one["run_number"] == 0 else PAPER
            ax.plot(sweep.values, heights, **common, ls=style.dash, lw=1.7, mfc=fill, gid=gid, label=series)
            made.mark(gid, series, (row["record"] for row in good.values()))
            if metric.low and metric.high:
                low, high = ([row[end] for row in good.values()] for end in (metric.low, metric.high))
                spread = ax.vlines(list(good), low, high, colors=style.light, linewidth=3.2, alpha=0.45)
                spread.set_gid(made.mark(f"{gid}-spread", series))
        if hollow:
            heights = [row[metric.column] for row in hollow.values()]
            ax.plot(list(hollow), heights, **common, ls="none", mfc="none", gid=f"{gid}-hollow")
            made.mark(f"{gid}-hollow", series, (row["record"] for row in hollow.values()))
        last: tuple[float, float] | None = None
        if good or hollow:
            x = max({**good, **hollow})
            last = (
                _share(x, ax.get_xlim(), ax.get_xscale()),
                _share(line[x][metric.column], ax.get_ylim(), ax.get_yscale()),
            )
        for x in (x for x, row in line.items() if row["status"] == "oom"):
            height = _OOM_TOP - _OOM_STEP * stacked.get(x, 0)
            stacked[x] = stacked.get(x, 0) + 1
            oom = made.mark(f"{gid}-oom-{x}", series, [line[x]["record"]])
            _oom(ax, x, height, style.light, oom, made.mark(f"{oom}-word", series), left=x != first)
            if x == sweep.values[-1]:
                last = (_share(x, ax.get_xlim(), ax.get_xscale()), height)
        if last is not None:
            labels.append((series, one["impl"], *last))
    _labels(made, panel, labels)


def _oom(ax: Axes, value: float, height: float, colour: str, gid: str, word: str, *, left: bool) -> None:
    mark: dict[str, Any] = {
        "marker": "x",
        "markersize": 6.0,
        "markeredgewidth": 2.0,
        "linestyle": "none",
        "clip_on": False,
    }
    ax.plot([value], [height], color=colour, transform=ax.get_xaxis_transform(), gid=gid, **mark)
    ax.annotate(
        "OOM",
        (value, height),
        xycoords=ax.get_xaxis_transform(),
        xytext=(-6 if left else 6, 0),
        textcoords="offset points",
        size=8,
        color=INK,  # the colours of the series are for marks: as text some are too faint to read
        weight="bold",
        gid=word,
        ha="right" if left else "left",
        va="center_baseline",
    )


def _labels(made: Sheet, panel: Panel, labels: list[tuple[str, str, float, float]]) -> None:
    """Name each line at the right edge, with a thin leader from its last point, so that no legend is needed."""
    heights = scales.spread_labels([y for *_, y in labels], _LABEL_GAP, 0.0, 1.0)
    size = 9 if len(labels) <= 14 else 6.5
    for (series, impl, x, y), height in zip(labels, heights, strict=True):
        ax = panel.ax
        style, box, gid = look(impl), ax.transAxes, f"{panel.gid}-label-{slug(series)}"
        mark: dict[str, Any] = {
            "marker": style.marker,
            "markersize": 4.2,
            "markevery": [2],
            "clip_on": False,
            "transform": box,
        }
        leader, name = made.mark(f"{gid}-leader", series), made.mark(gid, series)
        ax.plot([x, 1.03, 1.06], [y, height, height], color=style.light, linewidth=0.5, gid=leader, **mark)
        ax.text(1.09, height, short(series, 16), size=size, color=INK, va="center_baseline", transform=box, gid=name)


def _share(value: float, limits: tuple[float, float], scale: str) -> float:
    """Return where ``value`` lies between ``limits``, 0 to 1."""
    low, high = limits
    if scale == "log":
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def _points(good: Line, metric: Metric) -> str:
    return ", ".join(f"{x} → {metric.show(row[metric.column], 3)}" for x, row in good.items())


def _alt(lines: dict[str, Line], sweep: Sweep, metric: Metric) -> str:
    """Say the figure in words: the ends of each line, and where memory ran out."""
    said = []
    for series, line in lines.items():
        good = [(x, row[metric.column]) for x, row in line.items() if row["ok"] and row[metric.column] > 0]
        words = [f"{metric.show(value, 3)} at {x}" for x, value in dict([*good[:1], *good[-1:]]).items()]
        gone = [str(x) for x, row in line.items() if row["status"] == "oom"]
        words += [f"out of memory at {', '.join(gone)}"] if gone else []
        said += [f"{short(series)}: {', '.join(words)}."] if words else []
    return f"{metric.name} by {sweep.axis.label.lower()}. " + " ".join(said)


def _notes(rows: pd.DataFrame, values: pd.Series, masks: list[str], sweep: Sweep) -> list[str]:
    """Return what is not in the figure, and why: nothing is left out in silence."""
    notes = []
    for status in ("error", "unsupported"):
        failed = rows[rows["status"] == status]
        if not failed.empty:
            pairs = failed.groupby("series")[sweep.axis.column].unique()
            where = "; ".join(f"{short(s)} at {', '.join(map(str, sorted(v)))}" for s, v in pairs.items())
            notes.append(f"Not drawn, {status}: {where}. The reasons are under Failures.")
    empty = rows["ok"] & ~(values > 0)
    if empty.any():
        who = ", ".join(short(series) for series in sorted(rows.loc[empty, "series"].unique()))
        notes.append(f"No positive value to draw for {who} at {int(empty.sum())} of {int(rows['ok'].sum())} points.")
    if len(masks) > _MOST_PANELS:
        notes.append(f"Masks without a panel, in results.csv: {'; '.join(map(mask_words, masks[_MOST_PANELS:]))}.")
    return notes
