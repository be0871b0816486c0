"""Puts a report together: table, sweeps, figures, sentences, page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from pytest_attn.perf.record import Run
from pytest_attn.report import svg
from pytest_attn.report.bars import bars_sheet
from pytest_attn.report.charts import sweep_sheet
from pytest_attn.report.draw import Sheet, settings
from pytest_attn.report.embed import embedded, implementations, series_places
from pytest_attn.report.findings import findings, problem_words
from pytest_attn.report.frame import records_frame, run_labels, to_csv
from pytest_attn.report.html import Figure, Page, Section, about, mask_choices, render
from pytest_attn.report.metrics import METRICS
from pytest_attn.report.style import Look, look
from pytest_attn.report.sweeps import AXES, Sweep, find_sweeps, headline_problem, masks_of
from pytest_attn.report.tables import (
    MOST_SWEEPS,
    comparison_tables,
    failure_table,
    first_call_table,
    sweep_tables,
    to_markdown,
)
from pytest_attn.report.words import DIRECTIONS, clean, count, listed, short

_HEADINGS = {"seq": "Sequence length", "batch": "Batch", "heads": "Heads", "embedding": "Embedding"}
_CHOICES = {"fwd": "Forward", "bwd": "Backward", "fwd_bwd": "Forward + backward"}


def build(runs: Sequence[Run], left_out: Sequence[str] = ()) -> dict[str, bytes]:
    """Return the files of the report by their names relative to its directory.

    ``left_out`` are sentences on what was not read, for the top of the page.
    """
    frame = records_frame(runs)
    sweeps = find_sweeps(frame)
    first = headline_problem(frame)
    sentences = findings(frame, sweeps, first)
    tables = comparison_tables(frame)
    first_calls, failures = first_call_table(frame), failure_table(frame)
    series = series_places(frame)
    maker = _Maker([look(impl) for impl in implementations(frame)], series)
    directions = [direction for direction in DIRECTIONS if (frame["direction"] == direction).any()]

    with settings():
        headline = maker.headline(frame, first, directions)
        sections = [maker.section(key, found, directions) for key, found in sweeps.items()]
    labels = run_labels(runs)
    page = Page(
        title=f"Attention on {listed(labels)}",
        subtitle=_subtitle(runs, frame),
        findings=sentences,
        left_out=[short(sentence, 400) for sentence in left_out],
        headline=headline,
        headline_missing="" if headline else "No figure: no record holds a time.",
        sections=sections,
        tables=tables,
        first_calls=first_calls,
        failures=failures,
        about=about(runs, labels),
        choices={
            "direction": [(direction, _CHOICES[direction]) for direction in directions],
            "metric": [(metric.key, metric.name) for metric in METRICS.values()],
            "mask": mask_choices(masks_of(frame)),
            "axis": _axis_choices(sections),
        },
        implementations=implementations(frame),
        runs=labels,
        series=series,
        records=embedded(runs, labels, frame),
        count=len(frame),
    )
    markdown = to_markdown(
        [*tables, *(table for table in (first_calls, failures) if table)], [*page.left_out, *sentences]
    )
    texts = {"index.html": render(page), "results.csv": to_csv(frame), "results.md": markdown}
    # A lone surrogate is legal in JSON but not in UTF-8.
    return maker.files | {name: text.encode("utf-8", "replace") for name, text in texts.items()}


class _Maker:
    """Draws figures once, keeps their files, and hands out their form for the page."""

    def __init__(self, looks: Sequence[Look], series: Mapping[str, tuple[int, int]]) -> None:
        self.looks, self.series = looks, series
        self.files: dict[str, bytes] = {}

    def headline(self, frame: pd.DataFrame, problem: str | None, directions: Sequence[str]) -> list[Figure]:
        rows = frame[frame["problem_id"] == problem]
        if rows.empty:
            return []
        label = problem_words(rows.iloc[0])
        drawn = [(direction, bars_sheet(rows, direction, label)) for direction in directions]
        return [self._keep(made, "", direction) for direction, made in drawn if made is not None]

    def section(self, key: str, sweeps: Sequence[Sweep], directions: Sequence[str]) -> Section:
        figures = []
        for direction in directions if sweeps else ():
            for metric in METRICS.values():
                made = sweep_sheet(sweeps[0], metric, direction)
                if made is not None:
                    figures.append(self._keep(made, metric.key, direction))
        missing = ""
        name = AXES[key].noun
        if not sweeps:
            missing = f"No figure: this run has no two problems that differ in {name} alone."
        elif not figures:
            missing = f"No figure: the run sweeps {name}, but no point of the sweep was measured."
        left_out = max(0, len(sweeps) - 1 - MOST_SWEEPS)
        return Section(key, _HEADINGS[key], figures, missing, sweep_tables(list(sweeps)), left_out)

    def _keep(self, made: Sheet, metric: str, direction: str) -> Figure:
        vector, raster = svg.files(made)
        self.files |= {f"figures/{made.name}.svg": vector, f"figures/{made.name}.png": raster}
        panels = svg.inline(made, vector, self.looks, self.series)
        return Figure(made.name, made.title, made.subtitle, metric, direction, panels, made.notes, "; ".join(made.key))


def _axis_choices(sections: Sequence[Section]) -> list[tuple[str, str]]:
    drawn = [(section.key, section.heading) for section in sections if section.key in AXES and section.figures]
    return [("all", "All"), *drawn] if len(drawn) > 1 else []


def _subtitle(runs: Sequence[Run], frame: pd.DataFrame) -> str:
    """Return what was run, in one line."""
    grids = listed(sorted({short(run.grid, 40) for run in runs}))
    contracts = listed(sorted({clean(contract) for contract in frame["contract"].unique()}))
    parts = [
        f"grid {grids}",
        count(int(frame["problem_id"].nunique()), "problem"),
        count(int(frame["impl"].nunique()), "implementation"),
        count(len(frame), "record"),
        *([f"contract {short(contracts, 60)}"] if contracts else []),
    ]
    return " · ".join(parts)
