"""What the numbers say, in sentences. Each function looks for one thing and returns a sentence, or nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import pandas as pd

from pytest_attn.report import further
from pytest_attn.report.forecast import Forecast
from pytest_attn.report.frame import series_order
from pytest_attn.report.run_pairs import MOST_RUNS, RunPair
from pytest_attn.report.style import BASELINE
from pytest_attn.report.sweeps import Sweep
from pytest_attn.report.words import (
    DIRECTIONS,
    clean,
    count,
    digits,
    heads,
    listed,
    mask_words,
    percent,
    short,
    size,
    times,
)

MOST = 10


def findings(
    frame: pd.DataFrame,
    sweeps: dict[str, list[Sweep]],
    headline: str | None,
    pairs: Sequence[RunPair] = (),
    predicted: Forecast | None = None,
) -> list[str]:
    """Return up to :data:`MOST` sentences about ``frame``, the most useful first.

    ``headline`` is the id of the problem that the first figure shows, ``pairs`` are the runs held against each other,
    ``predicted`` is what would have been needed where memory ran out.
    """
    if frame.empty:
        return ["The run holds no records: nothing was measured, so there is nothing to compare."]
    said: list[str] = []
    if not frame["ok"].any():
        said.append(
            f"No measurement succeeded: none of {count(len(frame), 'record')} holds a time that may be compared."
        )
    else:
        said += further.compared(pairs)
        # A run at a time: an implementation does not lead over itself in another run, nor on a slower machine.
        runs = [frame[frame["run_number"] == number] for number in sorted(frame["run_number"].unique())[:MOST_RUNS]]
        for rows in runs:
            said += itertools.islice(_leaders(rows, headline), 2 if len(runs) == 1 else 1)
        for rows in runs:
            said += _by_sequence(sweeps["seq"], rows)
        for rows in runs:
            said += _overall(rows)
        said += _memory_growth(sweeps["seq"])
        said += _causal(frame, sweeps["seq"])
        said += further.backward(frame)
        said += _top_speed(frame)
        said += further.accuracy(frame)
        said += further.energy(frame, headline)
    failures = [*_out_of_memory(frame, predicted), *_failures(frame)]
    return [*said[: MOST - len(failures)], *failures]


def problem_words(row: pd.Series) -> str:
    """Return a problem in words: ``batch 16, length 1024, 32 heads, head dim 64, fp16, causal``."""
    length = f"length {row['q_len']}" if row["q_len"] == row["kv_len"] else f"{row['q_len']} on {row['kv_len']} keys"
    asked = heads(row["heads"]) + (f" on {row['kv_heads']}" if row["kv_heads"] != row["heads"] else "")
    words = [
        f"batch {row['batch']}",
        length,
        asked,
        f"head dim {row['head_dim']}",
        row["dtype"],
        mask_words(row["mask"]),
    ]
    words += [f"{name} {row[name]:g}" for name in ("softcap", "scale") if pd.notna(row[name])]
    words += [row["layout"]] if row["layout"] != "bshd" else []
    return ", ".join(clean(word) for word in words)


def winners(rows: pd.DataFrame) -> list[str]:
    """Return the fastest series of one problem and direction, and those level with it: whose spreads overlap."""
    good = rows[rows["ok"]].sort_values(["time", "series"])
    if good.empty:
        return []
    level = good[good["time_p10"] <= good["time_p90"].iloc[0]]
    return [str(series) for series in level["series"]] or [str(good["series"].iloc[0])]


def _leaders(frame: pd.DataFrame, headline: str | None) -> Iterator[str]:
    """Say who leads at the headline problem, forward and then backward, with time and memory against the baseline."""
    rows = frame[frame["problem_id"] == headline]
    directions = [d for d in ("fwd", "bwd", "fwd_bwd") if (rows["direction"].eq(d) & rows["ok"]).any()]
    for number, direction in enumerate(directions[:2]):
        here = rows[rows["direction"] == direction].drop_duplicates("series")
        good = here[here["ok"]].sort_values(["time", "series"])
        best = good.iloc[0]
        where = f"at {problem_words(best)}" if number == 0 else "at the same problem"
        lead = _lead(here, good, DIRECTIONS[direction])
        # Of two that are level, "it" would be either.
        who = (short(best["series"], 40), f"{BASELINE}'s") if " are level " in lead else ("it", "its")
        yield f"{lead} {where}{_memory_words(best, *who)}."


def _lead(here: pd.DataFrame, good: pd.DataFrame, direction: str) -> str:
    best = good.iloc[0]
    name = short(best["series"], 40)
    if best["impl"] == BASELINE:
        if len(good) == 1:
            return f"{name} alone was measured {direction}"
        second = good.iloc[1]
        if second["time_p10"] <= best["time_p90"]:
            return f"{name} and {short(second['series'], 40)} are level {direction}"
        factor = times(second["time"] / best["time"])
        return f"{name} is fastest {direction}: {short(second['series'], 40)} takes {factor} its time"
    if pd.notna(best["speedup"]):
        base = good[(good["impl"] == BASELINE) & (good["run_number"] == best["run_number"])]
        if not base.empty and base["time_p10"].iloc[0] <= best["time_p90"]:
            return f"{name} and {BASELINE} are level {direction}"
        return f"{name} is {times(best['speedup'])} faster than {BASELINE} {direction}"
    baseline = here[here["impl"] == BASELINE]
    if (baseline["status"] == "oom").any():
        return f"{name} is fastest {direction} where {BASELINE} is out of memory"
    if len(good) > 1:
        last = good.iloc[-1]
        factor = times(last["time"] / best["time"])
        return f"{name} is fastest {direction}, {factor} faster than {short(last['series'], 40)}"
    return f"{name} is the only one measured {direction}"


def _memory_words(best: pd.Series, who: str, whose: str) -> str:
    if best["impl"] == BASELINE or not best["memory_share"] > 0:
        return ""
    if best["memory_share"] >= 0.995:
        return (
            f"; {who} needs {times(best['memory_share'])} {whose} memory"
            if best["memory_share"] > 1.005
            else "; both need the same memory"
        )
    return f"; {who} needs {percent(best['memory_share'])} of {whose} memory"


def _by_sequence(sweeps: list[Sweep], run: pd.DataFrame) -> Iterator[str]:
    """Say which implementation leads over which range of sequence lengths, in the main sweep of the records ``run``."""
    for sweep in sweeps[:1]:
        mask = sweep.masks[-1] if "causal" not in sweep.masks else "causal"
        rows = sweep.frame[(sweep.frame["mask"] == mask) & (sweep.frame["direction"] == "fwd")]
        rows = rows[rows["record"].isin(run["record"])]
        led: list[tuple[str, int, int]] = []
        for value, part in rows.groupby(sweep.axis.column):
            # One winner a point: a tie goes on with who led before, so that noise does not alternate.
            ahead = winners(part.drop_duplicates("series"))
            if not ahead:
                continue
            if led and led[-1][0] in ahead:
                led[-1] = (led[-1][0], led[-1][1], int(str(value)))
            else:
                led.append((ahead[0], int(str(value)), int(str(value))))
        if not led or rows["series"].nunique() < 2:
            return
        place = f"({mask_words(mask)} mask; {sweep.fixed})"
        if len(led) == 1:
            yield f"Fastest forward at every length from {led[0][1]} to {led[0][2]}: {short(led[0][0], 40)} {place}."
        else:
            said = [
                f"{short(name, 40)} {_range(number, len(led), low, high)}"
                for number, (name, low, high) in enumerate(led)
            ]
            yield f"Fastest forward by length: {listed(said, 5)} {place}."


def _range(number: int, of: int, low: int, high: int) -> str:
    if number == 0:
        return f"up to {high}"
    if number == of - 1:
        return f"from {low}"
    return f"at {low}" if low == high else f"from {low} to {high}"


def _overall(frame: pd.DataFrame) -> Iterator[str]:
    """Say who wins how often forward, and by what factor over the baseline on average."""
    rows = frame[(frame["direction"] == "fwd") & frame["ok"]].sort_values(["problem_id", "time", "series"])
    first = rows.drop_duplicates("problem_id")
    if len(first) < 3 or rows["series"].nunique() < 2:
        return
    wins = first["series"].value_counts()
    top = sorted(wins.items(), key=lambda item: (-int(item[1]), str(item[0])))[:3]
    said = listed([f"{short(name, 40)} in {number}" for name, number in top])
    mean = ""
    ratios = rows.loc[(rows["series"] == top[0][0]) & (rows["impl"] != BASELINE), "speedup"].dropna()
    if len(ratios):
        factor = math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))
        mean = f"; over {BASELINE}, {short(top[0][0], 40)} gains {times(factor)} in the geometric mean"
    each = rows.drop_duplicates(["problem_id", "series"])
    second = each[each.groupby("problem_id").cumcount() == 1].set_index("problem_id")["time_p10"]
    level = int((second <= first.set_index("problem_id")["time_p90"].reindex(second.index)).sum())
    ties = f", level with the second in {level}" if level else ""
    yield f"Of {count(len(first), 'problem')} forward, the fastest is {said}{ties}{mean}."


def _memory_growth(sweeps: list[Sweep]) -> Iterator[str]:
    """Hold the growth of the baseline's memory with length against the one that grows least."""
    for sweep in sweeps[:1]:
        rows = sweep.frame[(sweep.frame["mask"] == sweep.masks[0]) & sweep.frame["ok"] & (sweep.frame["memory"] > 0)]
        direction = next((d for d in ("fwd_bwd", "bwd", "fwd") if (rows["direction"] == d).any()), "fwd")
        table = rows[rows["direction"] == direction].pivot_table(index="q_len", columns="series", values="memory")
        base = [s for s in table.columns if s == BASELINE or str(s).startswith(f"{BASELINE} · ")]
        if not base:
            return
        # Over the lengths that the baseline could do, and the implementations that could do all of those.
        table = table.loc[table[base[0]].notna()].dropna(axis="columns")
        if len(table) < 2 or table.shape[1] < 2:
            return
        growth = (table.iloc[-1] / table.iloc[0]).sort_values(kind="stable")
        low, high = int(table.index[0]), int(table.index[-1])
        if growth.index[0] == base[0]:
            return
        grown = [f"{times(growth[series])} for {short(series, 40)}" for series in (base[0], growth.index[0])]
        span = f"From length {low} to {high} ({times(high / low)})"
        place = f"({mask_words(sweep.masks[0])} mask; {sweep.fixed})"
        yield f"{span}, memory {DIRECTIONS[direction]} grows {' and '.join(grown)} {place}."


def _causal(frame: pd.DataFrame, sweeps: list[Sweep]) -> Iterator[str]:
    """Say what a causal mask saves at the longest length: half the work is skipped, if the kernel skips it."""
    for sweep in sweeps[:1]:
        rows = sweep.frame[(sweep.frame["direction"] == "fwd") & sweep.frame["ok"]]
        table = rows.pivot_table(index=[sweep.axis.column, "series"], columns="mask", values="time")
        if not {"full", "causal"} <= set(table.columns):
            return
        ratio = (table["full"] / table["causal"]).dropna()
        if ratio.empty:
            return
        longest = ratio.index.get_level_values(0).max()
        here = ratio.xs(longest).sort_values(ascending=False, kind="stable")
        best, worst = here.index[0], here.index[-1]
        said = f"{times(here.iloc[0])} as fast for {short(best, 40)}"
        said += f", {times(here.iloc[-1])} for {short(worst, 40)}" if len(here) > 1 else ""
        yield (
            f"A causal mask makes forward at length {longest} {said} ({sweep.fixed}); "
            "skipping all that is masked would gain nearly 2×."
        )


def _top_speed(frame: pd.DataFrame) -> Iterator[str]:
    rows = frame[frame["ok"] & (frame["tflops"] > 0)].sort_values(["tflops", "series"], ascending=[False, True])
    if len(rows) > 1:
        best = rows.iloc[0]
        yield (
            f"Highest speed: {short(best['series'], 40)} with {digits(best['tflops'])} TFLOP/s "
            f"{DIRECTIONS[best['direction']]} at {problem_words(best)}{further.nearest_to_peak(frame)}."
        )


def _out_of_memory(frame: pd.DataFrame, predicted: Forecast | None) -> Iterator[str]:
    gone = frame[frame["status"] == "oom"]
    if gone.empty:
        return
    said = []
    for series in series_order(gone):
        rows = gone[gone["series"] == series]
        said.append(
            f"{short(series, 40)} {len(rows)} times, first at length {rows['kv_len'].min()}"
            if len(rows) > 1
            else f"{short(series, 40)} once, at length {rows['kv_len'].iloc[0]}"
        )
    needed = ""
    if predicted is not None and predicted.bytes:
        (series, problem, direction), most = max(predicted.bytes.items(), key=lambda item: (item[1], item[0]))
        length = gone.loc[gone["problem_id"] == problem, "kv_len"].iloc[0]
        what = f"{short(series, 40)} {DIRECTIONS[direction]} at length {length}"
        needed = f"; {what} would have needed {size(most)} (predicted)"
    yield f"{len(gone)} of {count(len(frame), 'measurement')} ran out of memory: {listed(said)}{needed}."


def _failures(frame: pd.DataFrame) -> Iterator[str]:
    """Name what else does not count, with the first reason: the rest stands in the table of failures."""
    kinds = {"error": "failed", "unsupported": "were refused as unsupported", "noisy": "are too noisy to compare"}
    kinds["host_bound"] = "measure the host rather than the device"
    said = []
    for status, words in kinds.items():
        rows = frame[frame["status"] == status]
        if len(rows):
            who = listed([short(series, 40) for series in series_order(rows)])
            said.append(f"{len(rows)} {words} ({who})")
    if said:
        yield f"Not compared, of {count(len(frame), 'measurement')}: {listed(said)}; the reasons are under Failures."
