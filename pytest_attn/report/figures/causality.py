"""What a causal mask saves: half of the work is skipped, if the kernel skips it."""

from __future__ import annotations

import pandas as pd

from attn_impls.problem import CAUSAL
from pytest_attn.report.draw import Margins, Sheet, key, sheet
from pytest_attn.report.figures.rows import MOST_ROWS, ROW, Dot, draw_dots
from pytest_attn.report.words import DIRECTIONS, clean, heads, seconds, short, times

_SHAPE = ["batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim", "dtype", "softcap", "scale", "layout"]


def causal_sheet(frame: pd.DataFrame, direction: str) -> Sheet | None:
    """Draw full and causal time of each series at one shape: the largest that most series did with both masks.

    ``None`` where no series was measured with both.
    """
    rows = frame[(frame["direction"] == direction) & frame["ok"] & frame["mask"].isin(("full", "causal"))]
    if rows.empty:
        return None
    rows = rows.assign(shape=rows.groupby(_SHAPE, dropna=False, sort=True).ngroup())
    both = rows.drop_duplicates(["shape", "series", "mask"])
    both = both[both.groupby(["shape", "series"])["mask"].transform("nunique") == 2]
    if both.empty:
        return None
    shapes = both.groupby("shape").agg(series=("series", "nunique"), flops=("flops", "max"))
    shape = shapes.sort_values(["series", "flops"], kind="stable").index[-1]
    here = both[both["shape"] == shape]
    full, causal = (here[here["mask"] == mask].set_index("series", drop=False) for mask in ("full", "causal"))
    names = [str(name) for name in causal.sort_values("time", kind="stable").index]
    dots = [
        Dot(
            causal.loc[name],
            float(causal.at[name, "time"]),
            float(causal.at[name, "time_p10"]),
            float(causal.at[name, "time_p90"]),
            f"{seconds(float(causal.at[name, 'time']))} · {times(full.at[name, 'time'] / causal.at[name, 'time'])}",
            other=float(full.at[name, "time"]),
        )
        for name in names[:MOST_ROWS]
    ]
    one = here.iloc[0]
    length = f"length {one['q_len']}" if one["q_len"] == one["kv_len"] else f"{one['q_len']} on {one['kv_len']} keys"
    where = f"batch {one['batch']}, {length}, {heads(one['heads'])}, head dim {one['head_dim']}, {clean(one['dtype'])}"
    made = sheet(
        f"causal-over-full-{direction.replace('_', '-')}",
        f"What does a causal mask save {DIRECTIONS[direction]}?",
        where,
        ["Time (median): filled causal, hollow full"],
        0.95 + ROW * len(dots),
        Margins(left=1.25, right=0.14, bottom=0.46),
    )
    (panel,) = made.panels
    draw_dots(made, panel, dots, seconds)
    panel.alt = f"{made.title} At {where}, causal time and full over causal: " + "; ".join(
        f"{short(dot.series)} {dot.text}" for dot in dots
    )
    key(made, spread=True)
    made.key.append("filled: causal; hollow: full; factor: full over causal")
    made.notes.append(
        f"A causal mask leaves {_visible(one):.0f} % of the scores: a kernel that skips the rest gains "
        f"{times(100 / _visible(one))} at most by that."
    )
    return made


def _visible(row: pd.Series) -> float:
    """Return what per cent of the score matrix a causal mask (aligned bottom-right) leaves visible."""
    return 100 * CAUSAL.visible(int(row["q_len"]), int(row["kv_len"])) / (int(row["q_len"]) * int(row["kv_len"]))
