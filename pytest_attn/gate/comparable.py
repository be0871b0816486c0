"""Which runs must not be compared, and why: another machine, contract or grid, or nothing in common."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from pytest_attn.perf.record import Run


class NotComparable(ValueError):
    """Two runs whose times say nothing about each other; the message is one sentence that names what differs."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What two runs must share for their times to belong together; ``contracts`` are contract ids."""

    machine: Mapping[str, Any]
    contracts: Set[str]
    grid: str


def differences(before: Terms, after: Terms) -> dict[str, str]:
    """Return which of ``machine``, ``contract`` and ``grid`` differ, each with what it was and what it is."""
    found = {}
    if machine := changes(before.machine, after.machine):
        found["machine"] = "; ".join(machine)
    if before.contracts != after.contracts:
        found["contract"] = f"{_listed(before.contracts)} -> {_listed(after.contracts)}"
    if before.grid != after.grid:
        found["grid"] = f"{before.grid} -> {after.grid}"
    return found


def sentence(differences: Mapping[str, str]) -> str:
    """Return ``machine (...) and grid (...)`` for what :func:`differences` found."""
    return " and ".join(f"{name} ({change})" for name, change in differences.items())


def refuse_unlike(base: Run, head: Run) -> None:
    """Raise :class:`NotComparable` unless both runs were taken on the same machine, contract and grid.

    Another schema never gets here: :func:`pytest_attn.perf.record.load_run` reads one only.
    """
    for name, run in (("base", base), ("head", head)):
        if not run.records:
            raise NotComparable(f"the {name}{_source(run)} holds no records")
        if not _contracts(run):
            raise NotComparable(f"the {name}{_source(run)} holds no record that is ok")
    if found := differences(*(Terms(run.machine, _contracts(run), run.grid) for run in (base, head))):
        raise NotComparable(f"the runs cannot be compared, they differ in {sentence(found)}")


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return ``key: old -> new`` for every key whose value differs, sorted; a missing key is like ``None``."""
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def _contracts(run: Run) -> set[str]:
    return {record.contract for record in run.records if record.status == "ok"}


def _listed(names: Set[str]) -> str:
    return ", ".join(sorted(names))


def _source(run: Run) -> str:
    return f", {run.source}," if run.source else ""
