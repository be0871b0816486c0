"""Tables: every problem by implementation, the sweeps that have no figure of their own, and the failures."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from pytest_attn.report.frame import series_order
from pytest_attn.report.metrics import METRICS, Metric
from pytest_attn.report.style import BASELINE
from pytest_attn.report.sweeps import Sweep
from pytest_attn.report.words import DIRECTIONS, STATUS_MARKS, clean, mask_words, percent, seconds, short, times

Record = Mapping[Hashable, Any]

MOST_ROWS, MOST_SWEEPS, MOST_FAILURES = 200, 12, 200
# Turning rows of all columns into dictionaries would be the slowest part of a large report.
_NEEDED = (
    *("record", "series", "run_number", "impl", "problem_id", "mask", "status", "reason", "ok"),
    *("time", "tflops", "memory", "speedup", "memory_share"),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """A value, what stands small under it, whether it is the best of its row, a text on hovering, and its record."""

    text: str
    small: str = ""
    best: bool = False
    hint: str = ""
    record: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table: its heading, a remark under that, and its cells."""

    label: str
    note: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of one metric and direction; ``left_out`` rows did not fit and are in ``results.csv`` only."""

    title: str
    metric: str
    direction: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    left_out: int = 0


def comparison_tables(frame: pd.DataFrame) -> list[Table]:
    """Return a table for each direction and metric: a row a problem, a column an implementation.

    Under a time stands the speed-up over the baseline, under a size the share of the baseline's memory.
    """
    columns = series_order(frame)
    shared, labels = problem_labels(frame)
    tables = []
    for direction in (d for d in DIRECTIONS if (frame["direction"] == d).any()):
        rows = frame[frame["direction"] == direction]
        cases = _by_case(rows)
        shown = list(cases)[:MOST_ROWS]
        for metric in METRICS.values():
            if not (rows[metric.column] > 0).any() and metric.key != "time":
                continue
            lines = tuple(_row(labels[key], cases[key], columns, metric) for key in shown)
            title = f"{metric.label}, {DIRECTIONS[direction]}" + (f" ({shared})" if shared else "")
            left_out = len(cases) - len(shown)
            tables.append(Table(title, metric.key, direction, tuple(columns), lines, left_out))
    return tables


def problem_labels(frame: pd.DataFrame) -> tuple[str, dict[str, str]]:
    """Return what all problems share, in words, and for each problem id the rest: ``B16 S1024 H32 D64 causal``."""
    cases = frame.drop_duplicates("problem_id")
    square = bool((cases["q_len"] == cases["kv_len"]).all())
    parts = {
        "batch": "B{}",
        "q_len": "S{}" if square else "Q{}",
        **({} if square else {"kv_len": "K{}"}),
        "heads": "H{}",
        **({"kv_heads": "KV{}"} if (cases["heads"] != cases["kv_heads"]).any() else {}),
        "head_dim": "D{}",
        "mask": "{}",
        "dtype": "{}",
        "softcap": "softcap {:g}",
        "scale": "scale {:g}",
        "layout": "{}",
    }
    same = {name for name in parts if len(cases) > 1 and cases[name].nunique(dropna=False) == 1}
    if len(cases) <= 1:
        same = {"softcap", "scale", "layout"} & {name for name in parts if not cases[name].notna().any()}

    def words(row: pd.Series, names: Iterable[str]) -> str:
        told = {**row.to_dict(), "mask": mask_words(row["mask"])}
        return clean(
            " ".join(parts[name].format(told[name]) for name in parts if name in names and pd.notna(row[name]))
        )

    shared = words(cases.iloc[0], same - {"layout"}) if len(cases) else ""
    labels = {str(row["problem_id"]): words(row, parts.keys() - same) for _, row in cases.iterrows()}
    return (f"all {shared}" if shared else ""), labels


def _by_case(rows: pd.DataFrame) -> dict[str, dict[str, Record]]:
    """Return the records of each problem by series: of two records of one case, the first."""
    cases: dict[str, dict[str, Record]] = {}
    for record in rows[list(_NEEDED)].to_dict("records"):
        cases.setdefault(str(record["problem_id"]), {}).setdefault(str(record["series"]), record)
    return cases


def _row(label: str, case: dict[str, Record], columns: list[str], metric: Metric) -> Row:
    best = best_value(case.values(), metric)
    base = {r["status"] for r in case.values() if r["impl"] == BASELINE} - {"ok"}
    note = f"{BASELINE}: {STATUS_NOTES[str(min(base))]}" if base else ""
    return Row(label, note, tuple(value_cell(case.get(series), metric, best) for series in columns))


def best_value(records: Iterable[Record], metric: Metric) -> float | None:
    """Return the best value of ``metric`` among records that are ``ok``; ``None`` with fewer than two to compare."""
    good = [record[metric.column] for record in records if record["ok"] and record[metric.column] > 0]
    return (max(good) if metric.more_is_better else min(good)) if len(good) > 1 else None


STATUS_NOTES = {
    "ok": "no usable time",
    "oom": "out of memory",
    "unsupported": "unsupported",
    "error": "failed",
    "host_bound": "host-bound, not compared",
    "noisy": "noisy, not compared",
}


def value_cell(record: Record | None, metric: Metric, best: float | None) -> Cell:
    """Return the cell of a record: its value, or why there is none; ``best`` is the value to be marked."""
    return (
        Cell("·", hint="not run") if record is None else replace(_cell(record, metric, best), record=record["record"])
    )


def _cell(record: Record, metric: Metric, best: float | None) -> Cell:
    value, status = float(record[metric.column]), str(record["status"])
    reason = clean(record["reason"]) if isinstance(record["reason"], str) else ""
    if status != "ok":
        mark = STATUS_MARKS[status]
        return Cell(f"({metric.show(value, 3)})", mark, hint=reason) if value > 0 else Cell(mark, hint=reason)
    if not value > 0:
        return Cell("–", hint="not recorded")
    speedup, share = float(record["speedup"]), float(record["memory_share"])
    small = ""
    if record["impl"] != BASELINE:
        small = times(speedup) if metric.key == "time" and speedup > 0 else small
        small = percent(share) if metric.key == "memory" and share > 0 else small
    return Cell(metric.show(value, 3), small, best is not None and value == best)


def sweep_tables(sweeps: list[Sweep]) -> list[Table]:
    """Return times along the sweeps after the first, which has the figure: a row an implementation and mask."""
    metric, tables = METRICS["time"], []
    for sweep in sweeps[1 : MOST_SWEEPS + 1]:
        for direction in (d for d in DIRECTIONS if (sweep.frame["direction"] == d).any()):
            rows = sweep.frame.loc[sweep.frame["direction"] == direction, [*_NEEDED, sweep.axis.column]]
            lines = []
            for mask in sweep.masks:
                cases: dict[str, dict[int, Record]] = {series: {} for series in series_order(rows)}
                for record in rows[rows["mask"] == mask].to_dict("records"):
                    cases[str(record["series"])].setdefault(int(record[sweep.axis.column]), record)
                note = mask_words(mask)
                for series, case in cases.items():
                    cells = tuple(value_cell(case.get(value), metric, None) for value in sweep.values)
                    lines += [Row(short(series), note, cells)] if case else []
            columns = tuple(f"{sweep.axis.symbol} {value}" for value in sweep.values)
            tables.append(Table(f"{sweep.fixed}, {DIRECTIONS[direction]}", "time", direction, columns, tuple(lines)))
    return tables


def first_call_table(frame: pd.DataFrame) -> Table | None:
    """Return what compiling or building adds to a first call, and what a launch costs the host, by implementation."""
    rows = []
    for series in series_order(frame):
        part = frame[(frame["series"] == series) & frame["ok"]]
        first, host = (pd.to_numeric(part[name], errors="coerce").dropna() for name in ("compile_s", "host_us"))
        if first.empty:
            continue
        launch = f"{host.median():.0f} µs" if len(host) else "not measured"
        cells = (Cell(seconds(first.median())), Cell(seconds(first.max())), Cell(launch))
        rows.append(Row(clean(series), "", cells))
    if not rows:
        return None
    columns = ("First call over the second: median", "longest", "Host time of a launch: median")
    return Table("Compile and launch", "", "", columns, tuple(rows))


def failure_table(frame: pd.DataFrame) -> Table | None:
    """Return every record that is not ``ok`` with its reason; equal reasons of an implementation are one line."""
    failed = frame[~frame["ok"]]
    if failed.empty:
        return None
    reasons = failed["reason"].map(
        lambda reason: clean(reason) if isinstance(reason, str) and reason.strip() else "no reason recorded"
    )
    rows = []
    for (series, status, reason), part in failed.assign(reason=reasons).groupby(
        ["series", "status", "reason"], sort=True
    ):
        first = clean(part["problem_id"].iloc[0])
        where = first if len(part) == 1 else f"{len(part)} records, first {first}"
        directions = ", ".join(d for d in DIRECTIONS if (part["direction"] == d).any())
        rows.append(
            Row(
                clean(series),
                "",
                (Cell(STATUS_NOTES[str(status)]), Cell(short(reason, 600)), Cell(where), Cell(directions)),
            )
        )
    kept = tuple(rows[:MOST_FAILURES])
    columns = ("Status", "Reason", "Where", "Directions")
    return Table("Not measured, or not to be compared", "", "", columns, kept, len(rows) - len(kept))


def to_markdown(tables: Iterable[Table], sentences: Iterable[str]) -> str:
    """Return ``results.md``: the findings, then every table; the best of a row is bold."""
    lines = ["# Attention results", "", *(f"- {_escape(sentence)}" for sentence in sentences), ""]
    for table in tables:
        lines += [
            f"## {_escape(table.title)}",
            "",
            _line(["", *map(_escape, table.columns)]),
            _line(["---"] * (len(table.columns) + 1)),
        ]
        lines += [_line([_join(row.label, row.note), *map(_markdown, row.cells)]) for row in table.rows]
        lines += ["", f"{table.left_out} more rows are in results.csv."] if table.left_out else []
        lines.append("")
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(cell: Cell) -> str:
    text = f"**{_escape(cell.text)}**" if cell.best else _escape(cell.text)
    return f"{text} ({_escape(cell.small)})" if cell.small else text


def _join(label: str, note: str) -> str:
    return f"{_escape(label)} ({_escape(note)})" if note else _escape(label)


def _escape(text: str) -> str:
    for plain, escaped in (
        ("\\", "\\\\"),
        ("&", "&amp;"),
        ("<", "&lt;"),
        ("|", "\\|"),
        ("`", "\\`"),
        ("*", "\\*"),
        ("_", "\\_"),
        ("[", "\\["),
    ):
        text = text.replace(plain, escaped)
    return text
