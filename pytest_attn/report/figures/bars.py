"""One problem, one direction: time and memory by implementation. What a reader looks at first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pytest_attn.report import axes as scales
from pytest_attn.report.draw import Margins, Panel, Sheet, key, sheet
from pytest_attn.report.frame import series_order
from pytest_attn.report.metrics import METRICS, Metric
from pytest_attn.report.style import BASELINE, FAINT, INK, PAPER, RULE, look
from pytest_attn.report.words import DIRECTIONS, STATUS_WORDS, clean, percent, short, slug, times

# Bars start at zero; where one value is that many times another the small ones would vanish, so dots on a log axis
# take their place.
_MOST_RATIO = 10.0


def bars_sheet(rows: pd.DataFrame, direction: str, label: str) -> Sheet | None:
    """Draw time and peak memory of the one problem in ``rows`` by implementation; ``None`` without any value."""
    rows = rows[rows["direction"] == direction].drop_duplicates("series")
    if rows.empty or not (rows["time"] > 0).any():
        return None
    known = {series: number for number, series in enumerate(series_order(rows))}
    rank = rows["series"].map(known)
    rows = rows.assign(rank=rank, last=~(rows["time"] > 0)).sort_values(["last", "time", "rank"])
    metrics = [METRICS[name] for name in ("time", "memory") if (rows[METRICS[name].column] > 0).any()]
    made = sheet(
        f"by-implementation-{direction.replace('_', '-')}",
        f"Which implementation is fastest {DIRECTIONS[direction]}, and what does it need?",
        label,
        [metric.label for metric in metrics],
        0.95 + 0.29 * len(rows),
        Margins(left=1.25, right=0.14, top=0.36, bottom=0.46),
    )
    for panel, metric in zip(made.panels, metrics, strict=True):
        _bars(made, panel, rows, metric)
        said = "; ".join(f"{short(row.series)} {_text(row, metric)}" for row in rows.itertuples())
        panel.alt = f"{metric.label} {DIRECTIONS[direction]} at {label}: {said}."
    hollow = bool(((rows["time"] > 0) & ~rows["ok"]).any())
    key(made, spread=True, oom=bool((rows["status"] == "oom").any()), hollow=hollow)
    return made


def _bars(made: Sheet, panel: Panel, rows: pd.DataFrame, metric: Metric) -> None:
    ax = panel.ax
    values = rows[metric.column].to_numpy(dtype=float)
    real = values[np.isfinite(values) & (values > 0)]
    log = float(real.max() / real.min()) > _MOST_RATIO
    reach = rows[metric.high].max() if metric.high else 0.0
    _value_axis(ax, float(real.min()), float(real.max()), float(np.nan_to_num(reach)), metric, log=log)
    left = ax.get_xlim()[0]
    for place, row in enumerate(rows.itertuples()):
        style, value = look(str(row.impl)), float(getattr(row, metric.column))
        gid = made.mark(f"{panel.gid}-bar-{slug(str(row.series))}", str(row.series), [row.record])
        made.hints[gid] = f"{clean(row.series)}: {_text(row, metric)}"
        end = left
        if value > 0 and log:
            ax.plot([left, value], [place, place], color=RULE, linewidth=0.8, zorder=1)
            face = "none" if not row.ok else PAPER if row.run_number else style.light
            ax.plot([value], [place], color=style.light, marker=style.marker, ms=7, mfc=face, linestyle="none", gid=gid)
            end = value
        elif value > 0:
            fill: dict[str, Any] = {"facecolor": style.light if row.ok else "none", "edgecolor": style.light}
            if row.ok and row.run_number:  # as marks of later runs are
                fill = {"facecolor": PAPER, "edgecolor": style.light, "hatch": "/////"}
            bar = ax.barh([place], [value], height=0.62, **fill)
            bar.patches[0].set_gid(gid)
            end = value
        elif row.status == "oom":
            mark: dict[str, Any] = {
                "marker": "x",
                "markersize": 6.0,
                "markeredgewidth": 2.0,
                "linestyle": "none",
                "clip_on": False,
            }
            ax.plot([0.025], [place], color=style.light, gid=gid, transform=ax.get_yaxis_transform(), **mark)
        if value > 0 and metric.low and metric.high:
            ends = [float(getattr(row, metric.low)), float(getattr(row, metric.high))]
            ax.plot(
                ends,
                [place, place],
                color=INK,
                linewidth=1.0,
                marker="|",
                markersize=5,
                gid=made.mark(f"{gid}-spread", str(row.series)),
            )
            end = max(end, ends[1])
        ax.annotate(
            _text(row, metric),
            (end, place),
            xytext=(14 if row.status == "oom" else 7, 0),
            textcoords="offset points",
            size=9,
            color=INK if row.ok else FAINT,
            va="center_baseline",
            gid=made.mark(f"{gid}-value", str(row.series)),
        )
    ax.set_yticks(range(len(rows)), [short(tag, 17) for tag in rows["tag"]])
    for label, series in zip(ax.get_yticklabels(), rows["series"], strict=True):
        label.set_gid(made.mark(f"{panel.gid}-label-{slug(str(series))}", str(series)))
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    ax.set_ylim(len(rows) - 0.4, -0.6)


def _value_axis(ax: Axes, low: float, high: float, reach: float, metric: Metric, *, log: bool) -> None:
    """Lay out the axis of values from ``low`` to ``high``, whose spreads end at ``reach``.

    More than half of the width holds values, the rest the text beside the last of them, which stands behind its spread.
    """
    scales.dress(ax)
    ax.spines["left"].set_visible(False)
    if log:
        low = low / 1.5
        high = max(high * (high / low) ** 0.75, reach * (reach / low) ** 0.6 if reach > high else 0.0)
        scales.log_values_axis(ax, low, high, metric.show, metric.base, along="x", most=4)
    else:
        scales.linear_values_axis(ax, max(high * 1.75, reach * 1.6), metric.show, metric.base, along="x", most=4)


def _text(row: object, metric: Metric) -> str:
    """Return what stands beside a bar: ``1.2 ms · 9.1×``, ``12 MiB · 6 %``, or why there is no value."""
    status, value = str(getattr(row, "status", "")), float(getattr(row, metric.column, float("nan")))
    if not value > 0:
        return "not recorded" if status == "ok" else STATUS_WORDS[status]
    shown = metric.show(value, 3)
    if status != "ok":
        return f"{shown} ({STATUS_WORDS[status]})"
    speedup, share = float(getattr(row, "speedup", 0.0)), float(getattr(row, "memory_share", 0.0))
    if getattr(row, "impl", "") == BASELINE:
        return shown
    if metric.key == "time":
        return f"{shown} · {times(speedup)}" if speedup > 0 else shown
    return f"{shown} · {percent(share)}" if share > 0 else shown
