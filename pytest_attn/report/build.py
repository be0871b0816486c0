"""Puts a report together: table, sweeps, figures, sentences, page."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pandas as pd

from pytest_attn.perf.record import Run
from pytest_attn.report.embed import embedded, implementations, series_places
from pytest_attn.report.findings import findings
from pytest_attn.report.frame import records_frame, run_labels, run_letter, to_csv
from pytest_attn.report.html import Page, Section, about, mask_choices, render
from pytest_attn.report.metrics import METRICS
from pytest_attn.report.reference import reference_tables
from pytest_attn.report.rendering import Drawn, Dress, spare
from pytest_attn.report.rendering import render as render_figures
from pytest_attn.report.run_pairs import pair_tables
from pytest_attn.report.sections import Data, Plan, headline, plans
from pytest_attn.report.style import look
from pytest_attn.report.sweeps import AXES, find_sweeps, headline_problem, masks_of
from pytest_attn.report.tables import comparison_tables, failure_table, first_call_table, to_markdown
from pytest_attn.report.words import clean, count, listed, short

_CHOICES = {"fwd": "Forward", "bwd": "Backward", "fwd_bwd": "Forward + backward"}


def build(runs: Sequence[Run], left_out: Sequence[str] = ()) -> dict[str, bytes]:
    """Return the files of the report by their names relative to its directory.

    ``left_out`` are sentences on what was not read, for the top of the page.
    """
    with spare(sum(len(run.records) for run in runs)) as helper:
        frame = records_frame(runs)
        sweeps = find_sweeps(frame)
        first = headline_problem(frame)
        labels = run_labels(runs)
        impls, series = implementations(frame), series_places(frame)
        data = Data.of(runs, frame, sweeps, first)
        sentences = findings(frame, sweeps, first, data.pairs, data.forecast)
        first_shots, planned = headline(data), list(plans(data))
        shots = [*first_shots, *(shot for plan in planned for shot in plan.shots)]
        dress = Dress([look(impl) for impl in impls], _run_legend(labels), series)
        drawn, (tables, first_calls, failures, listing, records) = render_figures(
            shots,
            dress,
            lambda: (
                [
                    *(table for pair in data.pairs for table in pair_tables(pair)),
                    *reference_tables(frame, first),
                    *comparison_tables(frame),
                ],
                first_call_table(frame),
                failure_table(frame),
                to_csv(frame),
                embedded(runs, labels, frame),
            ),
            helper,
        )
    headlines = [made.figure for made in drawn[: len(first_shots)] if made is not None]
    sections = list(_sections(planned, iter(drawn[len(first_shots) :])))
    page = Page(
        title=f"Attention on {listed(labels)}",
        subtitle=_subtitle(runs, frame),
        findings=sentences,
        left_out=[short(sentence, 400) for sentence in left_out],
        headline=headlines,
        headline_missing="" if headlines else "No figure: no record holds a time.",
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
        implementations=impls,
        runs=labels,
        series=series,
        records=records,
        count=len(frame),
    )
    others = [table for table in (first_calls, failures) if table]
    markdown = to_markdown([*tables, *others], [*page.left_out, *sentences])
    texts = {"index.html": render(page), "results.csv": listing, "results.md": markdown}
    # A lone surrogate is legal in JSON but not in UTF-8.
    files = {name: text.encode("utf-8", "replace") for name, text in texts.items()}
    for made in (made for made in drawn if made is not None):
        files |= {f"figures/{made.figure.name}.svg": made.vector, f"figures/{made.figure.name}.png": made.raster}
    return files


def _sections(planned: Sequence[Plan], drawn: Iterator[Drawn | None]) -> Iterator[Section]:
    """Yield the sections; one that has nothing to show and nothing to say is left out."""
    for plan in planned:
        made = [figure for figure in itertools.islice(drawn, len(plan.shots)) if figure is not None]
        figures = [figure.figure for figure in made]
        if figures or plan.missing:
            missing = "" if figures else plan.missing
            yield Section(plan.key, plan.heading, figures, missing, plan.others, plan.left_out)


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
