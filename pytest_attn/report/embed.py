"""The records as the page carries them: columns, equal texts once, so that twenty thousand take a few megabytes.

The page makes three things of them: what a mark or a cell says on hovering, everything about one record in a click,
kernels included, and a table of all records that can be searched and sorted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from pytest_attn.perf.record import Run
from pytest_attn.report.findings import problem_words
from pytest_attn.report.style import BASELINE, order
from pytest_attn.report.tables import STATUS_NOTES
from pytest_attn.report.words import DIRECTIONS, clean, mask_kind, short

#: More records than that are in ``results.csv`` only, and the page says so.
MOST_RECORDS = 25_000
_MOST_KERNELS, _MOST_TEXT, _MOST_NUMBER = 12, 300, 1e300

#: Numbers of a record: column of the table, name in the page, and how the page shows it.
NUMBERS = (
    ("time", "Time (median)", "seconds"),
    ("time_p10", "Time, p10", "seconds"),
    ("time_p90", "Time, p90", "seconds"),
    ("rounds", "Rounds", "count"),
    ("speedup", f"Speed-up over {BASELINE}", "times"),
    ("tflops", "Useful TFLOP/s", "digits"),
    ("percent_of_peak", "Percent of peak", "percent"),
    ("percent_of_peak_at_clock", "Percent of peak at the measured clock", "percent"),
    ("memory", "Peak memory over the inputs", "bytes"),
    ("memory_share", f"Memory, share of {BASELINE}", "share"),
    ("workspace_bytes", "Workspace", "bytes"),
    ("saved_bytes", "Saved for backward", "bytes"),
    ("host_us", "Host time of a launch", "micro"),
    ("compile_s", "First call over the second", "seconds"),
    ("kernel_s", "Sum of the kernels", "seconds"),
    ("error_ratio", "Error over the error allowed", "digits"),
    ("sm_mhz", "SM clock, MHz", "digits"),
    ("power_w", "Power, W", "digits"),
    ("energy_j", "Energy, J", "digits"),
)
#: Texts of a record, by column.
TEXTS = (("impl_version", "Version"), ("note", "Note"))


def series_places(frame: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Return for each series the numbers of its implementation, as :func:`implementations` orders them, and its run."""
    numbers = {impl: number for number, impl in enumerate(implementations(frame))}
    found = frame[["series", "impl", "run_number"]].drop_duplicates()
    return {str(row.series): (numbers[str(row.impl)], int(str(row.run_number))) for row in found.itertuples()}


def implementations(frame: pd.DataFrame) -> list[str]:
    """Return the implementations in ``frame`` in the order of every legend."""
    return sorted(map(str, frame["impl"].unique()), key=order)


def embedded(runs: Sequence[Run], labels: Sequence[str], frame: pd.DataFrame) -> str:
    """Return the records as JSON that is safe between script tags; the first :data:`MOST_RECORDS` of ``frame``."""
    shown = frame.head(MOST_RECORDS)
    numbers = {impl: number for number, impl in enumerate(implementations(frame))}
    problems = _Texts()
    words: list[list[str]] = []
    for row in shown.drop_duplicates("problem_id").to_dict("records"):
        problems.number(str(row["problem_id"]))
        words.append([clean(row["problem_id"]), problem_words(pd.Series(row)), mask_kind(str(row["mask"]))])
    reasons, kernels = _Texts(), _Texts()
    texts = {name: _Texts() for name, _ in TEXTS if name in shown}
    records = [record for run in runs for record in run.records][: len(shown)]
    directions, statuses = list(DIRECTIONS), ["ok", *STATUS_NOTES]
    columns: dict[str, list[Any]] = {
        "impl": [numbers[str(impl)] for impl in shown["impl"]],
        "run": shown["run_number"].tolist(),
        "problem": [problems.number(str(problem)) for problem in shown["problem_id"]],
        "direction": [directions.index(direction) for direction in shown["direction"]],
        "status": [statuses.index(status) for status in shown["status"]],
        "reason": [reasons.number(_text(reason)) for reason in shown["reason"]],
        "kernels": [_kernels(record.kernels, kernels) for record in records],
        **{name: [found.number(_text(text)) for text in shown[name]] for name, found in texts.items()},
        **{name: [_rounded(value, kind) for value in shown[name]] for name, _, kind in NUMBERS if name in shown},
    }
    data = {
        "implementations": [short(impl, 60) for impl in numbers],
        "runs": [clean(label) for label in labels],
        "problems": words,
        "directions": [[name, DIRECTIONS[name]] for name in directions],
        "statuses": [["ok", "measured"], *([name, note] for name, note in STATUS_NOTES.items())],
        "reasons": reasons.found,
        "kernels": kernels.found,
        "texts": [[name, label, texts[name].found] for name, label in TEXTS if name in texts],
        # A column that no record has a value in is not worth its commas.
        "numbers": [item for item in NUMBERS if any(value is not None for value in columns.get(item[0], ()))],
        "columns": {name: column for name, column in columns.items() if any(value is not None for value in column)},
        "left_out": len(frame) - len(shown),
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate({ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"})


class _Texts:
    """Numbers texts in the order of their first use."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str | None) -> int | None:
        return None if text is None else self._numbers.setdefault(text, len(self._numbers))

    @property
    def found(self) -> list[str]:
        return list(self._numbers)


def _text(value: object) -> str | None:
    return short(value, _MOST_TEXT) if isinstance(value, str) and value.strip() else None


def _rounded(value: object, kind: str) -> float | int | None:
    """Return ``value`` with the digits that the page shows, ``None`` for what is no finite number: JSON has no NaN.

    Rounding once, and as the figures do, keeps page and figures from differing in the last digit. Bytes and counts are
    whole: in binary units they do not round as they do in decimal ones.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _MOST_NUMBER:
        return None
    if kind in ("bytes", "count"):
        return round(value)
    few = (kind == "times" and value < 100) or (kind == "share" and value < 1)
    rounded = float(f"{value:.{2 if few else 3}g}")
    return int(rounded) if rounded.is_integer() else rounded


def _kernels(kernels: Iterable[Mapping[str, Any]] | None, names: _Texts) -> list[float | int | None] | None:
    """Return name, share and count of each kernel, one after the other."""
    flat: list[float | int | None] = []
    for kernel in list(kernels or ())[:_MOST_KERNELS]:
        if isinstance(kernel, Mapping) and kernel.get("name"):
            name = names.number(short(kernel["name"], _MOST_TEXT))
            flat += [name, _rounded(kernel.get("share"), "share"), _rounded(kernel.get("count"), "count")]
    return flat or None
