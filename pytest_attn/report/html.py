"""The page: one file that opens from disk, with its figures, its style, its script and nothing to load."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from pytest_attn.perf.record import Run
from pytest_attn.report.frame import run_letter
from pytest_attn.report.style import Look, look
from pytest_attn.report.svg import variable
from pytest_attn.report.tables import Table
from pytest_attn.report.words import clean, mask_kind, short

#: Marks of a legend, as paths in a box of -5 to 5, by the marker of the figures.
_SHAPES = {
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "s": "M-3.6-3.6h7.2v7.2h-7.2z",
    "^": "M0-4.4L4.4 4H-4.4z",
    "v": "M0 4.4L4.4-4H-4.4z",
    "<": "M-4.4 0L4-4.4V4.4z",
    ">": "M4.4 0L-4-4.4V4.4z",
    "D": "M0-5L5 0L0 5L-5 0z",
    "p": "M0-4.6L4.4-1.4L2.7 3.7H-2.7L-4.4-1.4z",
    "h": "M0-4.8L4.2-2.4V2.4L0 4.8L-4.2 2.4V-2.4z",
    "P": "M-1.6-4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3z",
    "H": "M-4.8 0L-2.4-4.2H2.4L4.8 0L2.4 4.2H-2.4z",
    "8": "M-1.8-4.4H1.8L4.4-1.8V1.8L1.8 4.4H-1.8L-4.4 1.8V-1.8z",
    "d": "M0-5L3 0L0 5L-3 0z",
    "X": "M-4.4-2.2L-2.2-4.4L0-2.2L2.2-4.4L4.4-2.2L2.2 0L4.4 2.2L2.2 4.4L0 2.2L-2.2 4.4L-4.4 2.2L-2.2 0z",
    "*": "M0-5L1.3-1.6L4.9-1.5L2.1.7L3 4.1L0 2.1L-3 4.1L-2.1.7L-4.9-1.5L-1.3-1.6z",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure on the page: ``panels`` are ``<svg>`` elements of our own making, everything else is escaped."""

    name: str
    title: str
    subtitle: str
    metric: str
    direction: str
    panels: Sequence[str]
    notes: Sequence[str]
    key: str


@dataclass(frozen=True, slots=True)
class Section:
    """A topic: its figures, or the sentence that says why there are none, and its other sweeps as tables."""

    key: str
    heading: str
    figures: Sequence[Figure]
    missing: str
    others: Sequence[Table]
    left_out: int


@dataclass(frozen=True, slots=True)
class Page:
    """All that the template shows.

    ``choices`` maps what a reader chooses from (direction, metric, mask, axis) to ``(value, label)`` pairs, the first
    being what is shown first; the value ``all`` hides nothing. A figure is hidden only by a choice that names another
    of the values, so that one whose metric or direction nobody chooses from is always shown. ``series`` maps what
    tables call a column to the numbers of its implementation and run. ``records`` is JSON, safe between script tags.
    """

    title: str
    subtitle: str
    findings: Sequence[str]
    left_out: Sequence[str]
    headline: Sequence[Figure]
    headline_missing: str
    sections: Sequence[Section]
    tables: Sequence[Table]
    first_calls: Table | None
    failures: Table | None
    about: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    choices: Mapping[str, Sequence[tuple[str, str]]]
    implementations: Sequence[str]
    runs: Sequence[str]
    series: Mapping[str, tuple[int, int]]
    records: str
    count: int


def render(page: Page) -> str:
    """Return the page as HTML.

    Names come from strangers: everything but our own SVG is escaped, and a policy in the page lets no script run but
    the one that this module puts there, and nothing be loaded.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pytest_attn.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["short"] = short
    looks = [look(impl) for impl in page.implementations]
    script, style = (_part(name) for name in ("report.js", "report.css"))
    return environment.get_template("report.html.j2").render(
        page=page,
        # Text and rules have colours of their own in the style; here are those of the series.
        colours=sorted({(variable(look.light), look.light, look.dark) for look in looks}),
        legend=[
            (name, variable(look.light), _shape(look)) for name, look in zip(page.implementations, looks, strict=True)
        ],
        values={key: {value for value, _ in items} for key, items in page.choices.items()},
        places=_places(page),
        letters=[run_letter(number) for number in range(len(page.runs))],
        drawn=Markup,
        script=Markup(script),
        style=Markup(style),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _places(page: Page) -> dict[str, tuple[int, int | None]]:
    """Return the numbers of implementation and run by what tables call them, in a row's heading or a column's.

    With a single run there is no run to choose, and its number would be said ten thousand times.
    """
    places: dict[str, tuple[int, int | None]] = {}
    for number, impl in enumerate(page.implementations):
        places |= dict.fromkeys((clean(impl), short(impl)), (number, None))
    for series, (number, run) in page.series.items():
        place = (number, run if len(page.runs) > 1 else None)
        places |= dict.fromkeys((series, clean(series), short(series)), place)
    return places


def _part(name: str) -> str:
    return resources.files("pytest_attn.report").joinpath("templates", name).read_text(encoding="utf-8")


def _shape(look: Look) -> str:
    return _SHAPES.get(look.marker, _SHAPES["o"])


def mask_choices(masks: Sequence[str]) -> list[tuple[str, str]]:
    """Return what a reader chooses from where a run has ``masks``; empty where there is nothing to choose."""
    names = {"full": "Not causal", "causal": "Causal", "window": "Window", "other": "Other"}
    kinds = {mask_kind(mask) for mask in masks}
    found = [(kind, name) for kind, name in names.items() if kind in kinds]
    return [("all", "All"), *found] if len(found) > 1 else []


def about(runs: Sequence[Run], labels: Sequence[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what the runs say of themselves as headed lists of (name, value)."""
    groups: list[tuple[str, list[tuple[str, str]]]] = []
    for run, label in zip(runs, labels, strict=True):
        tail = f" · {label}" if len(runs) > 1 else ""
        contracts = sorted({clean(record.contract) for record in run.records})
        general = [("grid", clean(run.grid)), ("file", clean(run.source)), ("records", str(len(run.records)))]
        groups.append((f"Run{tail}", [*general, ("contract", ", ".join(contracts) or "none")]))
        groups.append((f"Machine{tail}", _flat(run.machine)))
        groups.append((f"Environment{tail}", _flat(run.environment)))
        groups += [(f"Instruments{tail}", _flat(run.instruments))] if run.instruments else []
        present, missing = [], []
        for name, entry in sorted(run.implementations.items()):
            known = entry if isinstance(entry, Mapping) else {}
            if known.get("missing"):
                missing.append((short(name, 60), clean(known["missing"])))
            else:
                present.append((short(name, 60), clean(known.get("version") or "no version given")))
        groups += [(f"Implementations{tail}", present)] if present else []
        groups += [(f"Missing implementations{tail}", missing)] if missing else []
    return groups


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as lines: ``gpu.name``; order is by name, so that equal runs give equal pages."""
    lines: list[tuple[str, str]] = []
    for name, value in sorted(values.items(), key=lambda item: str(item[0])):
        path = clean(f"{prefix}{name}")
        if isinstance(value, Mapping):
            lines += _flat(value, f"{path}.")
        else:
            shown = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            lines.append((path, short(shown, 600)))
    return lines
