"""Which runs must not be compared, and why: another machine, contract or grid, or nothing in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_attn.perf.record import Run


class NotComparable(ValueError):
    """Two runs whose times say nothing about each other; the message is one sentence that names what differs."""


def refuse_unlike(base: Run, head: Run) -> None:
    """Raise :class:`NotComparable` unless both runs were taken on the same machine, contract and grid.

    Another schema never gets here: :func:`pytest_attn.perf.record.load_run` reads one only.
    """
    for name, run in (("base", base), ("head", head)):
        if not run.records:
            raise NotComparable(f"the {name}{_source(run)} holds no records")
        if not _contracts(run):
            raise NotComparable(f"the {name}{_source(run)} holds no record that is ok")
    differences = []
    if machine := changes(base.machine, head.machine):
        differences.append(f"machine ({'; '.join(machine)})")
    if _contracts(base) != _contracts(head):
        differences.append(f"contract ({_listed(_contracts(base))} -> {_listed(_contracts(head))})")
    if base.grid != head.grid:
        differences.append(f"grid ({base.grid} -> {head.grid})")
    if differences:
        raise NotComparable(f"the runs cannot be compared, they differ in {' and '.join(differences)}")


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return ``key: old -> new`` for every key whose value differs, sorted; a missing key is like ``None``."""
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def _contracts(run: Run) -> set[str]:
    return {record.contract for record in run.records if record.status == "ok"}


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _source(run: Run) -> str:
    return f", {run.source}," if run.source else ""
