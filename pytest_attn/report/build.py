"""Puts a report together: table, sweeps, figures, sentences, page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from pytest_attn.perf.record import Run
from pytest_attn.report import svg
from pytest_attn.report.draw import Sheet, settings
from pytest_attn.report.embed import embedded, implementations, series_places
from pytest_attn.report.findings import findings
from pytest_attn.report.frame import records_frame, run_labels, run_letter, to_csv
from pytest_attn.report.html import Figure, Page, Section, about, mask_choices, render
from pytest_attn.report.metrics import METRICS
from pytest_attn.report.run_pairs import pair_tables
from pytest_attn.report.sections import Data, Plan, Shot, plans
from pytest_attn.report.sections import headline as headline_shots
from pytest_attn.report.style import FAINT, Look, look
from pytest_attn.report.sweeps import AXES, find_sweeps, headline_problem, masks_of
from pytest_attn.report.tables import comparison_tables, failure_table, first_call_table, to_markdown
from pytest_attn.report.words import clean, count, listed, short

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
    labels = run_labels(runs)
    maker = _Maker([look(impl) for impl in implementations(frame)], series, _run_legend(labels))
    data = Data.of(runs, frame, sweeps, first)
    tables = [*(table for pair in data.pairs for table in pair_tables(pair)), *tables]
    with settings():
        headline = maker.figures(headline_shots(data))
        sections = [section for plan in plans(data) if (section := maker.section(plan)) is not None]
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
            "direction": [(direction, _CHOICES[direction]) for direction in data.directions],
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

    def __init__(self, looks: Sequence[Look], series: Mapping[str, tuple[int, int]], legend: str) -> None:
        self.looks, self.series = looks, series
        self.legend = legend
        self.files: dict[str, bytes] = {}

    def figures(self, shots: Iterable[Shot]) -> list[Figure]:
        """Draw ``shots``; one that finds no data gives no figure."""
        drawn = [(shot, shot.draw()) for shot in shots]
        return [self._keep(made, shot.metric, shot.direction) for shot, made in drawn if made is not None]

    def section(self, plan: Plan) -> Section | None:
        """Return the section, ``None`` where it has nothing to show and nothing to say."""
        figures = self.figures(plan.shots)
        if not figures and not plan.missing:
            return None
        missing = "" if figures else plan.missing
        return Section(plan.key, plan.heading, figures, missing, plan.others, plan.left_out)

    def _keep(self, made: Sheet, metric: str, direction: str) -> Figure:
        if self.legend:
            made.figure.text(0.99, 0.012, self.legend, size=8, color=FAINT, ha="right", va="bottom")
            made.key.append(self.legend)
        vector, raster = svg.files(made)
        self.files |= {f"figures/{made.name}.svg": vector, f"figures/{made.name}.png": raster}
        panels = svg.inline(made, vector, self.looks, self.series)
        return Figure(made.name, made.title, made.subtitle, metric, direction, panels, made.notes, "; ".join(made.key))


def _axis_choices(sections: Sequence[Section]) -> list[tuple[str, str]]:
    drawn = [(section.key, section.heading) for section in sections if section.key in AXES and section.figures]
    return [("all", "All"), *drawn] if len(drawn) > 1 else []


def _run_legend(labels: Sequence[str]) -> str:
    """Say which run is which where there are several: marks are filled in the first, hollow in the others."""
    if len(labels) < 2:
        return ""
    said = [f"{run_letter(number)} {short(label, 30)}" for number, label in enumerate(labels)]
    return f"filled: {said[0]}; hollow: {listed(said[1:], 3)}"


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
