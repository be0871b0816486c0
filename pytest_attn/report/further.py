"""Sentences on what is beside time and memory: the backward pass, accuracy, energy, and a second run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from pytest_attn.report.frame import series_order
from pytest_attn.report.run_pairs import RunPair, by_implementation
from pytest_attn.report.style import BASELINE
from pytest_attn.report.words import DIRECTIONS, clean, count, digits, joules, listed, percent, short, times


def compared(pairs: Sequence[RunPair]) -> Iterator[str]:
    """Say how a later run differs from the first: in the middle, and where it gained and lost most, clear ones only."""
    for pair in pairs:
        names = f"{short(pair.after, 40)} ({pair.letters[1]}) and {short(pair.before, 40)} ({pair.letters[0]})"
        if pair.cells.empty:
            yield f"{names} have no measurement in common, so nothing is compared between them."
            continue
        table = by_implementation(pair.cells)
        clear = pair.cells[pair.cells["clear"]].sort_values(["ratio", "impl", "problem_id", "direction"], kind="stable")
        median = pair.cells["ratio"].median()
        over = f"{pair.letters[1]} over {pair.letters[0]}: the median of {count(len(pair.cells), 'cell')} is"
        counts = f"{int(table['faster'].sum())} are clearly faster and {int(table['slower'].sum())} clearly slower"
        ends = (
            [
                f"most {word} is {short(row['impl'], 40)} {DIRECTIONS[row['direction']]} at {clean(row['label'])} "
                f"({times(row['ratio'], 3)})"
                for word, row in (("gained", clear.iloc[-1]), ("lost", clear.iloc[0]))
                if (row["ratio"] > 1) == (word == "gained")
            ]
            if len(clear)
            else []
        )
        yield f"Speed of {over} {times(median, 3)}; {counts}{'; ' if ends else ''}{'; '.join(ends)}."


def backward(frame: pd.DataFrame) -> Iterator[str]:
    """Say how much longer than forward backward takes, for the one that pays least and the one that pays most."""
    rows = frame[frame["backward_ratio"] > 0]
    if rows["series"].nunique() < 2:
        return
    ratio = rows.groupby("series")["backward_ratio"].median().sort_values(kind="stable")
    least, most = (f"{times(ratio.iloc[end])} as long for {short(ratio.index[end], 40)}" for end in (0, -1))
    problems = count(int(rows["problem_id"].nunique()), "problem")
    yield f"Backward takes {least} to {most}, in the median over {problems}; by FLOPs it would be 2.5×."


def accuracy(frame: pd.DataFrame) -> Iterator[str]:
    """Say who exceeds the error budget, or who comes nearest to it."""
    rows = frame[frame["ok"] & frame["error_ratio"].notna()]
    if rows.empty:
        return
    over = rows[rows["error_ratio"] > 1]
    if over.empty:
        worst = rows.sort_values(["error_ratio", "series"], ascending=[False, True], kind="stable").iloc[0]
        name, share = short(worst["series"], 40), percent(worst["error_ratio"])
        within = f"The errors of {count(len(rows), 'record')} are all within budget"
        yield f"{within}; {name}'s is the largest, {share} of it."
        return
    said = [
        f"{short(series, 40)} in {len(part)} of {count(int((rows['series'] == series).sum()), 'record')}, "
        f"by up to {times(part['error_ratio'].max())}"
        for series in series_order(over)
        for part in [over[over["series"] == series]]
    ]
    yield f"Beyond the error budget: {listed(said)}."


def energy(frame: pd.DataFrame, headline: str | None) -> Iterator[str]:
    """Say who needs least energy a token forward at the problem of the first figure."""
    here = frame[(frame["problem_id"] == headline) & (frame["direction"] == "fwd") & frame["ok"]]
    here = here[here["energy_per_token"] > 0].sort_values(["energy_per_token", "series"], kind="stable")
    if len(here) < 2:
        return
    best = here.iloc[0]
    base = here[(here["impl"] == BASELINE) & (here["run_number"] == best["run_number"])]
    other = base.iloc[0] if len(base) and best["impl"] != BASELINE else here.iloc[-1]
    part = percent(best["energy_per_token"] / other["energy_per_token"])
    cost = joules(best["energy_per_token"])
    yield (
        f"Least energy forward at that problem: {short(best['series'], 40)} with {cost} a token, "
        f"{part} of {short(other['series'], 40)}'s."
    )


def nearest_to_peak(frame: pd.DataFrame) -> str:
    """Return a remark on the record nearest to the peak at the clock it ran at, or nothing."""
    rows = frame[frame["ok"] & (frame["percent_of_peak_at_clock"] > 0)]
    if rows.empty:
        return ""
    best = rows.sort_values(["percent_of_peak_at_clock", "series"], ascending=[False, True], kind="stable").iloc[0]
    value = digits(best["percent_of_peak_at_clock"])
    clock = f" at its {best['sm_mhz']:.0f} MHz" if best["sm_mhz"] > 0 else ""
    name = f"{short(best['series'], 40)} {DIRECTIONS[best['direction']]}"
    return f"; nearest to the arithmetic peak{clock} is {name} with {value} %"
