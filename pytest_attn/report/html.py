"""The page: one file that opens from disk, with its figures, its style and nothing to load."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from pytest_attn.perf.record import Run
from pytest_attn.report.style import Look
from pytest_attn.report.svg import variable
from pytest_attn.report.tables import Table
from pytest_attn.report.words import clean, short


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
    """An axis: its figures, or the sentence that says why there are none, and its other sweeps as tables."""

    key: str
    heading: str
    figures: Sequence[Figure]
    missing: str
    others: Sequence[Table]
    left_out: int


@dataclass(frozen=True, slots=True)
class Page:
    """All that the template shows."""

    title: str
    subtitle: str
    findings: Sequence[str]
    headline: Sequence[Figure]
    headline_missing: str
    sections: Sequence[Section]
    tables: Sequence[Table]
    first_calls: Table | None
    failures: Table | None
    about: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    choices: Mapping[str, Sequence[tuple[str, str]]]
    looks: Sequence[Look]


def render(page: Page) -> str:
    """Return the page as HTML. Names come from strangers: everything but our own SVG is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pytest_attn.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["short"] = short
    colours = sorted({(variable(look.light), look.light, look.dark) for look in page.looks})
    template = environment.get_template("report.html.j2")
    return template.render(page=page, colours=colours, drawn=Markup)


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
