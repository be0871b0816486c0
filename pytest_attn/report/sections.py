"""What the page shows, figure by figure: which kinds there are, in which order, and what is said where one is missing.

The number of figures does not grow with the number of records: of each axis the best sweep is drawn, of all shapes one
plane, of all problems one for bars, and of more runs than four the first four; the rest stands in tables and the CSV.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import pandas as pd

from pytest_attn.perf.record import Run
from pytest_attn.report.draw import Sheet
from pytest_attn.report.figures.accuracy import accuracy_sheet
from pytest_attn.report.figures.bars import bars_sheet
from pytest_attn.report.figures.causality import causal_sheet
from pytest_attn.report.figures.compare import compare_sheet
from pytest_attn.report.figures.compilation import compile_sheet
from pytest_attn.report.figures.fastest import fastest_sheet
from pytest_attn.report.figures.ladder import climbing_order, ladder_problem, ladder_sheet
from pytest_attn.report.figures.lines import Level, sweep_sheet
from pytest_attn.report.figures.roofline import roofline_sheet
from pytest_attn.report.findings import problem_words
from pytest_attn.report.forecast import Forecast, forecast
from pytest_attn.report.metrics import BACKWARD, ENERGY, METRICS, PEAK_AT_CLOCK, Metric
from pytest_attn.report.planes import Plane, find_plane
from pytest_attn.report.rendering import Shot
from pytest_attn.report.run_pairs import RunPair, run_pairs
from pytest_attn.report.sweeps import AXES, Sweep
from pytest_attn.report.tables import MOST_SWEEPS, Table, sweep_tables
from pytest_attn.report.words import DIRECTIONS, size

_HEADINGS = {"seq": "Sequence length", "batch": "Batch", "heads": "Heads", "embedding": "Embedding"}


@dataclass(frozen=True, slots=True)
class Data:
    """What figures are made from, worked out once."""

    frame: pd.DataFrame
    sweeps: Mapping[str, Sequence[Sweep]]
    headline: str | None
    order: Sequence[str]
    forecast: Forecast
    plane: Plane | None
    pairs: Sequence[RunPair]

    @classmethod
    def of(cls, runs: Sequence[Run], frame: pd.DataFrame, sweeps: dict[str, list[Sweep]], first: str | None) -> Data:
        """Work it out from the table of ``runs``."""
        plane = find_plane(frame)
        return cls(frame, sweeps, first, climbing_order(runs), forecast(frame), plane, run_pairs(frame))

    @property
    def directions(self) -> list[str]:
        """The directions that were run."""
        return [direction for direction in DIRECTIONS if (self.frame["direction"] == direction).any()]


@dataclass(frozen=True, slots=True)
class Plan:
    """A section before it is drawn; ``missing`` is said where none of its ``shots`` gives a figure.

    An empty ``missing`` says nothing: the section is for runs that hold such a thing.
    """

    key: str
    heading: str
    shots: Sequence[Shot]
    missing: str
    others: Sequence[Table] = field(default_factory=tuple)
    left_out: int = 0


def headline(data: Data) -> list[Shot]:
    """Return the first figures: time and memory by implementation at one problem."""
    rows = data.frame[data.frame["problem_id"] == data.headline]
    if rows.empty:
        return []
    label = problem_words(rows.iloc[0])
    return [Shot(partial(bars_sheet, rows, d, label), d) for d in data.directions]


def plans(data: Data) -> Iterator[Plan]:
    """Yield the sections in the order of the page."""
    frame, directions = data.frame, data.directions
    if data.pairs:
        yield Plan(
            "runs",
            "Runs compared",
            [Shot(partial(compare_sheet, pair, d), d) for pair in data.pairs for d in directions],
            "No figure: the runs have no measurement in common.",
        )
    yield Plan(
        "fastest",
        "Fastest by shape",
        [Shot(partial(fastest_sheet, data.plane, d), d) for d in directions] if data.plane else [],
        "No map of the fastest: no two shapes were measured by two implementations each.",
    )
    for key, sweeps in data.sweeps.items():
        yield _axis(data, key, sweeps)
    yield Plan(
        "causality",
        "Causal mask",
        [Shot(partial(causal_sheet, frame, d), d) for d in directions],
        "No figure of causality: no implementation was measured with and without a causal mask at one shape.",
    )
    yield Plan(
        "roofline",
        "Roofline and percent of peak",
        [
            *(Shot(partial(roofline_sheet, frame, d), d) for d in directions),
            *_along(data, PEAK_AT_CLOCK, directions),
        ],
        "No roofline: no two problems have a measured speed.",
    )
    yield Plan(
        "backward",
        "Backward over forward",
        # By FLOPs backward is 2.5 times forward: what is above is lost otherwise.
        [Shot(shot.draw) for shot in _along(data, BACKWARD, ["bwd"], [Level(2.5, "2.5× by FLOPs")])],
        "No figure of backward over forward: the run has no sweep in which both were measured.",
    )
    yield Plan(
        "accuracy",
        "Accuracy",
        [Shot(partial(accuracy_sheet, frame, d), d) for d in directions],
        "No figure of accuracy: no record holds an error.",
    )
    yield Plan("energy", "Energy", _along(data, ENERGY, directions), _no_energy(data))
    yield Plan(
        "first-call-time",
        "First call",
        [Shot(partial(compile_sheet, frame))],
        "No figure of the first call: no record holds its time.",
    )
    yield Plan("ladder", "The ladder", list(_ladder(data)), "")


def _axis(data: Data, key: str, sweeps: Sequence[Sweep]) -> Plan:
    shots, name = [], AXES[key].noun
    for direction in data.directions if sweeps else ():
        for metric in METRICS.values():
            shots.append(Shot(_sweep(data, sweeps[0], metric, direction), direction, metric.key))
    missing = f"No figure: this run has no two problems that differ in {name} alone."
    if sweeps:
        missing = f"No figure: the run sweeps {name}, but no point of the sweep was measured."
    left_out = max(0, len(sweeps) - 1 - MOST_SWEEPS)
    return Plan(key, _HEADINGS[key], shots, missing, sweep_tables(list(sweeps)), left_out)


def _sweep(data: Data, sweep: Sweep, metric: Metric, direction: str) -> Callable[[], Sheet | None]:
    if metric is not METRICS["memory"]:
        return partial(sweep_sheet, sweep, metric, direction)
    here = sweep.frame[sweep.frame["direction"] == direction]
    limits = here.loc[here["status"] == "oom", "device_bytes"].dropna()
    # Two machines have two limits: then none is drawn.
    levels = [Level(float(limits.iloc[0]), f"device memory {size(limits.iloc[0])}")] if limits.nunique() == 1 else []
    return partial(sweep_sheet, sweep, metric, direction, data.forecast, levels)


def _along(data: Data, metric: Metric, directions: Sequence[str], levels: Sequence[Level] = ()) -> list[Shot]:
    """Return ``metric`` along the first axis that has a sweep with such values."""
    for sweeps in data.sweeps.values():
        if sweeps and (sweeps[0].frame[metric.column] > 0).any():
            return [Shot(partial(sweep_sheet, sweeps[0], metric, d, None, levels), d) for d in directions]
    return []


def _no_energy(data: Data) -> str:
    if (data.frame["energy_per_token"] > 0).any():
        return "No figure of energy: the run has no sweep of records that hold it; results.csv does."
    return "No figure of energy: no record holds it."


def _ladder(data: Data) -> Iterator[Shot]:
    for direction in data.directions:
        problem = ladder_problem(data.frame, direction)
        if problem is not None:
            rows = data.frame[data.frame["problem_id"] == problem]
            words = problem_words(rows.iloc[0])
            yield Shot(partial(ladder_sheet, rows, data.order, direction, words), direction)
