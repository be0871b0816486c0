"""A metric along a sweep: one panel a mask, one line an implementation, OOM drawn where it happened."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pytest_attn.report import axes as scales
from pytest_attn.report.draw import Margins, Panel, Sheet, key, sheet
from pytest_attn.report.figures.marks import Name, fill, names, out_of_memory, place, spreads
from pytest_attn.report.forecast import Forecast
from pytest_attn.report.frame import series_order
from pytest_attn.report.metrics import Metric
from pytest_attn.report.style import BASELINE, FAINT, PAPER, Look, look
from pytest_attn.report.sweeps import Sweep
from pytest_attn.report.words import DIRECTIONS, clean, listed, mask_words, short, slug

MOST_LINES = 12
_HEIGHT, _MOST_PANELS = 3.4, 4
# The rows of one series in one panel by their x. Plain dictionaries: a figure asks for thousands of single values.
Line = dict[int, dict[Hashable, Any]]

# Turning rows of all columns into dictionaries would take as long as drawing them.
_NEEDED = ("record", "series", "impl", "tag", "run_number", "problem_id", "direction", "status", "ok")

_OOM_TOP, _OOM_STEP, _OOM_BAND = 0.965, 0.065, 0.17


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line at ``value`` of the metric, named where it stands."""

    value: float
    text: str


def sweep_sheet(
    sweep: Sweep,
    metric: Metric,
    direction: str,
    forecast: Forecast | None = None,
    levels: Sequence[Level] = (),
) -> Sheet | None:
    """Draw ``metric`` of ``direction`` along ``sweep``; ``None`` when nothing was measured there.

    Lines join ``ok`` points only and break where a point is missing. An ``oom`` record is an × at the top edge over
    its x, and a dotted line to what ``forecast`` says it would have needed. A record that is noisy or host-bound is a
    hollow mark without a line. Of more than :data:`MOST_LINES` series the baseline and the best are drawn.
    """
    rows = sweep.frame[sweep.frame["direction"] == direction]
    rows, left_out = _best_series(rows, metric, sweep.axis.column)
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
    predicted = forecast.bytes if forecast else {}
    shown = [
        predicted[key]
        for key in zip(oom["series"], oom["problem_id"], oom["direction"], strict=True)
        if key in predicted
    ]
    for panel, mask in zip(made.panels, masks, strict=False):
        lines = _by_series(rows[rows["mask"] == mask], sweep.axis.column, order, metric)
        _scales(panel.ax, sweep, metric, drawn, [*shown, *(level.value for level in levels)], oom)
        for level in levels:
            _level(panel, level)
        _lines(made, panel, lines, sweep, metric, predicted)
        panel.mask = mask
        panel.alt = f"{title} {panel.title}, {sweep.fixed}. " + _alt(lines, sweep, metric, predicted)
    hollow = bool((~drawn["ok"]).any())
    key(made, spread=metric.low is not None, oom=not oom.empty, hollow=hollow, predicted=bool(shown))
    made.notes += _notes(rows, values, masks, sweep)
    if forecast:
        made.notes += _predictions(forecast, order, direction, masks)
        if any(value < level.value for value in shown for level in levels):
            made.notes.append(
                "A prediction under the device's memory is of the tensors of one call: inputs, what else the process "
                "held, and gaps between blocks come on top."
            )
    if left_out:
        made.notes.append(f"Drawn are the {MOST_LINES} best; in results.csv: {listed(left_out, 6)}.")
    return made


def _best_series(rows: pd.DataFrame, metric: Metric, column: str) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows to draw, and the series left out: too many lines say nothing.

    The baseline stays; the others are ranked by their value against the best of the same point, on average.
    """
    if rows["series"].nunique() <= MOST_LINES:
        return rows, []
    good = rows[rows["ok"] & (rows[metric.column] > 0)]
    points = good.groupby([column, "mask"])[metric.column]
    best = points.transform("max") / good[metric.column] if metric.more_is_better else None
    worse = good[metric.column] / points.transform("min") if best is None else best
    ranked = worse.groupby(good["series"]).agg(["size", "mean"]).sort_values(["size", "mean"], ascending=[False, True])
    baseline = set(rows.loc[rows["impl"] == BASELINE, "series"])
    wanted = [*sorted(baseline), *(str(series) for series in ranked.index if series not in baseline)][:MOST_LINES]
    left_out = [short(series, 40) for series in series_order(rows) if series not in wanted]
    return rows[rows["series"].isin(wanted)], left_out


def _by_series(rows: pd.DataFrame, column: str, order: list[str], metric: Metric) -> dict[str, Line]:
    found: dict[str, Line] = {series: {} for series in order}
    needed = {column, metric.column, *filter(None, (metric.low, metric.high))} | set(_NEEDED)
    for row in rows[sorted(needed)].sort_values(column, kind="stable").to_dict("records"):
        found[str(row["series"])].setdefault(int(row[column]), row)  # of two records of one case, the first
    return {series: line for series, line in found.items() if line}


def _scales(
    ax: Axes, sweep: Sweep, metric: Metric, drawn: pd.DataFrame, more: Sequence[float], oom: pd.DataFrame
) -> None:
    """Give all panels of a sheet the same scales, so that causal can be held against full."""
    scales.dress(ax)
    # A point at which nothing stands, as where all refused, would be an empty edge.
    there = sorted({int(x) for rows in (drawn, oom) for x in rows[sweep.axis.column]})
    scales.points_axis(ax, there if len(there) > 1 else sweep.values)
    has_oom = not oom.empty
    scales.name_x(ax, sweep.axis.label)
    ends = drawn[[column for column in (metric.column, metric.low, metric.high) if column]]
    low, high = float(ends[ends > 0].min().min()), max(float(ends.max().max()), *more, 0.0)
    if not metric.log:
        scales.linear_values_axis(ax, high * 1.08 / (1 - _OOM_BAND * has_oom), metric.show, metric.base)
        return
    low, high = low / 1.3, high * 1.3
    if has_oom:  # room at the top, so that an × does not look like a value
        high *= max(1.5, (high / low) ** (_OOM_BAND / (1 - _OOM_BAND)))
    scales.log_values_axis(ax, low, high, metric.show, metric.base)


def _level(panel: Panel, level: Level) -> None:
    panel.ax.axhline(level.value, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), gid=f"{panel.gid}-level")
    # Above the line at the left: lines of a sweep rise to the right.
    panel.ax.annotate(
        level.text,
        (0.0, level.value),
        xycoords=panel.ax.get_yaxis_transform(),
        xytext=(4, 3),
        textcoords="offset points",
        size=8,
        color=FAINT,
        zorder=4,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.4, "alpha": 0.85},
    )


def _lines(
    made: Sheet, panel: Panel, lines: dict[str, Line], sweep: Sweep, metric: Metric, predicted: Mapping[Any, float]
) -> None:
    ax, first = panel.ax, sweep.values[0]
    stacked: dict[int, int] = {}
    labels: list[Name] = []
    for series, line in lines.items():
        one = next(iter(line.values()))
        style, gid = look(one["impl"]), f"{panel.gid}-series-{slug(series)}"
        valued = {x: row for x, row in line.items() if row[metric.column] > 0}
        if any(row["ok"] for row in valued.values()):
            good = {x: row for x, row in valued.items() if row["ok"]}
            made.hints[gid] = f"{clean(series)}: {_points(good, metric)}"
        _line(ax, valued, sweep.values, metric, gid, series)
        made.mark(gid, series, [row["record"] for row in valued.values() if row["ok"]])
        made.mark(f"{gid}-hollow", series, [row["record"] for row in valued.values() if not row["ok"]])
        made.mark(f"{gid}-spread", series)
        last = None
        if valued:
            x = max(valued)
            last = place(ax, x, valued[x][metric.column])
        for number, x in enumerate(x for x, row in line.items() if row["status"] == "oom"):
            height = _OOM_TOP - _OOM_STEP * stacked.get(x, 0)
            stacked[x] = stacked.get(x, 0) + 1
            # Said once a series: the next × would stand on the word.
            side = "none" if number else "left" if x != first else "right"
            out_of_memory(ax, x, height, style.light, f"{gid}-oom-{x}", side)
            made.mark(f"{gid}-oom-{x}", series, [line[x]["record"]])
            made.mark(f"{gid}-oom-{x}-word", series)
            if x == sweep.values[-1]:
                last = (place(ax, x, ax.get_ylim()[1])[0], height)
        _prediction(made, panel, line, valued, metric, predicted)
        if last is not None:
            labels.append(Name.of(one, last))
    names(made, panel, labels)


def _line(ax: Axes, valued: Line, xs: Sequence[int], metric: Metric, gid: str, series: str) -> None:
    """Draw one series: a line over what is ``ok`` with its spread, hollow marks for the rest."""
    good = {x: row for x, row in valued.items() if row["ok"]}
    hollow = {x: row[metric.column] for x, row in valued.items() if not row["ok"]}
    if not valued:
        return
    one = next(iter(valued.values()))
    style = look(one["impl"])
    common: dict[str, Any] = {"color": style.light, "marker": style.marker, "markersize": 5.0}
    if good:
        # A point that is missing or failed is a gap: a line through it would claim a value.
        heights = [good[x][metric.column] if x in good else math.nan for x in xs]
        ax.plot(xs, heights, **common, ls=style.dash, lw=1.7, mfc=fill(one), gid=gid, label=series)
        if metric.low and metric.high:
            low, high = ([row[end] for row in good.values()] for end in (metric.low, metric.high))
            spread = spreads(ax, list(good), low, high, style.light, 3.2)
            spread.set_gid(f"{gid}-spread")
    if hollow:
        ax.plot(list(hollow), list(hollow.values()), **common, ls="none", mfc="none", gid=f"{gid}-hollow")


def _prediction(
    made: Sheet, panel: Panel, line: Line, valued: Line, metric: Metric, predicted: Mapping[Any, float]
) -> None:
    """Draw a dotted line from the last measured point to what would have been needed where memory ran out."""
    keys = {x: (row["series"], row["problem_id"], row["direction"]) for x, row in line.items()}
    said = {x: predicted[key] for x, key in keys.items() if line[x]["status"] == "oom" and key in predicted}
    if not said:
        return
    one = next(iter(line.values()))
    style: Look = look(one["impl"])
    before = {x: row[metric.column] for x, row in valued.items() if x < min(said)}
    points = {**({max(before): before[max(before)]} if before else {}), **said}
    gid = made.mark(f"{panel.gid}-predicted-{slug(str(one['series']))}", str(one["series"]))
    made.hints[gid] = f"{clean(one['series'])}, predicted: " + ", ".join(
        f"{x} → {metric.show(value, 3)}" for x, value in said.items()
    )
    marker: dict[str, Any] = {"marker": style.marker, "markersize": 4.0, "mfc": PAPER}
    if before:
        marker["markevery"] = slice(1, None)  # the first point is the last one measured, which has its mark
    panel.ax.plot(list(points), list(points.values()), color=style.light, ls=":", lw=1.3, gid=gid, **marker)


def _points(good: Line, metric: Metric) -> str:
    return ", ".join(f"{x} → {metric.show(row[metric.column], 3)}" for x, row in good.items())


def _alt(lines: dict[str, Line], sweep: Sweep, metric: Metric, predicted: Mapping[Any, float]) -> str:
    """Say the figure in words: the ends of each line, and where memory ran out."""
    said = []
    for series, line in lines.items():
        good = [(x, row[metric.column]) for x, row in line.items() if row["ok"] and row[metric.column] > 0]
        words = [f"{metric.show(value, 3)} at {x}" for x, value in dict([*good[:1], *good[-1:]]).items()]
        gone = {x: row for x, row in line.items() if row["status"] == "oom"}
        words += [f"out of memory at {', '.join(map(str, gone))}"] if gone else []
        for x, row in gone.items():
            needed = predicted.get((series, row["problem_id"], row["direction"]))
            words += [f"predicted {metric.show(needed, 3)} at {x}"] if needed else []
        said += [f"{short(series)}: {', '.join(words)}."] if words else []
    return f"{metric.name} by {sweep.axis.label.lower()}. " + " ".join(said)


def _notes(rows: pd.DataFrame, values: pd.Series, masks: list[str], sweep: Sweep) -> list[str]:
    """Return what is not in the figure, and why: nothing is left out in silence."""
    notes = []
    for status in ("error", "unsupported"):
        failed = rows[rows["status"] == status]
        if not failed.empty:
            pairs = failed.groupby("series")[sweep.axis.column].unique()
            where = [f"{short(s)} at {listed(list(map(str, sorted(v))), 8)}" for s, v in pairs.items()]
            notes.append(f"Not drawn, {status}: {'; '.join(where)}. The reasons are under Failures.")
    empty = rows["ok"] & ~(values > 0)
    if empty.any():
        who = ", ".join(short(series) for series in sorted(rows.loc[empty, "series"].unique()))
        notes.append(f"No positive value to draw for {who} at {int(empty.sum())} of {int(rows['ok'].sum())} points.")
    if len(masks) > _MOST_PANELS:
        notes.append(f"Masks without a panel, in results.csv: {'; '.join(map(mask_words, masks[_MOST_PANELS:]))}.")
    return notes


def _predictions(forecast: Forecast, order: list[str], direction: str, masks: list[str]) -> list[str]:
    """Say how each dotted line was predicted."""
    fits = {
        (series, mask): forecast.fits[series, direction, mask]
        for series in order
        for mask in masks
        if (series, direction, mask) in forecast.fits
    }
    if not fits:
        return []
    said = [f"{short(series)} {mask_words(mask)} as {fit}" for (series, mask), fit in fits.items()]
    return [f"Predicted where memory ran out: {'; '.join(said)}."]
