"""Which runs must not be compared, and why: another machine, contract or grid, or nothing in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from pytest_attn.perf.record import Run

MAY_DIFFER = ("machine", "driver", "contract", "grid")


class NotComparable(ValueError):
    """Two runs whose times say nothing about each other; the message is one sentence that names what differs.

    ``names`` holds those of :data:`MAY_DIFFER` that would have to be allowed; empty where nothing helps.
    """

    def __init__(self, message: str, names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.names = tuple(names)


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


def refuse_unlike(base: Run, head: Run, allow: Set[str] = frozenset()) -> None:
    """Raise :class:`NotComparable` unless both runs were taken on the same machine, contract and grid.

    Another schema never gets here: :func:`pytest_attn.perf.record.load_run` reads one only.

    Args:
        base: what was.
        head: what is.
        allow: which of :data:`MAY_DIFFER` may differ; ``machine`` does not include its driver.
    """
    for name, run in (("base", base), ("head", head)):
        if not run.records:
            raise NotComparable(f"the {name}{_source(run)} holds no records")
        if not _contracts(run):
            raise NotComparable(f"the {name}{_source(run)} holds no record that is ok")
    before, after = _contracts(base), _contracts(head)
    _refuse(
        Terms(base.machine, _shared(before, after), base.grid),
        Terms(head.machine, _shared(after, before), head.grid),
        allow,
    )


def refuse_unlike_pairs(pairs: Sequence[tuple[Run, Run]]) -> None:
    """Raise :class:`NotComparable` unless all runs share machine and grid, and the two sides their contracts.

    A single run without a record that is ok is no reason: its pair is one pair less.
    """
    if not pairs:
        raise NotComparable("there are no pairs to compare")
    sides = [(name, [pair[index] for pair in pairs]) for index, name in enumerate(("base", "head"))]
    contracts = [set[str]().union(*(_contracts(run) for run in runs)) for _, runs in sides]
    for (name, runs), found in zip(sides, contracts, strict=True):
        if not found:
            raise NotComparable(f"the {name} holds no record that is ok in any of its {len(runs)} runs")
    terms = [
        Terms(run.machine, _shared(own, other), run.grid)
        for (_, runs), own, other in zip(sides, contracts, reversed(contracts), strict=True)
        for run in runs
    ]
    for each in terms[1:]:
        _refuse(terms[0], each, frozenset())


def _refuse(before: Terms, after: Terms, allow: Set[str]) -> None:
    found = differences(before, after)
    if "machine" in found:
        of_driver = changes(_driver(before.machine, True), _driver(after.machine, True))
        of_rest = changes(_driver(before.machine, False), _driver(after.machine, False))
        del found["machine"]
        split = {"machine": of_rest, "driver": of_driver}
        found = {name: "; ".join(each) for name, each in split.items() if each} | found
    if refused := {name: change for name, change in found.items() if name not in allow}:
        raise NotComparable(f"the runs cannot be compared, they differ in {sentence(refused)}", list(refused))


def _driver(machine: Mapping[str, Any], driver: bool) -> dict[str, Any]:
    return {key: value for key, value in machine.items() if (key == "driver") is driver}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return ``key: old -> new`` for every key whose value differs, sorted; a missing key is like ``None``."""
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def _contracts(run: Run) -> set[str]:
    return {record.contract for record in run.records if record.status == "ok"}


def _shared(own: Set[str], other: Set[str]) -> Set[str]:
    """Return what both have, or ``own`` where that is nothing.

    A contract that one side has on top, for instance of an implementation that the other lost, leaves the rest
    comparable; its own cells are told apart one by one.
    """
    return own & other or own


def _listed(names: Set[str]) -> str:
    return ", ".join(sorted(names))


def _source(run: Run) -> str:
    return f", {run.source}," if run.source else ""
