"""The verdicts as a table for a terminal, the worst first, ended by one summary line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_attn.gate.comparable import changes
from pytest_attn.gate.evidence import kernels_built
from pytest_attn.gate.shown import change, quantity
from pytest_attn.gate.shown import summary as summary
from pytest_attn.gate.verdict import Outcome, Verdict
from pytest_attn.perf.record import Run
from pytest_attn.text import paint, printable, table

_HEADER = ("verdict", "implementation", "problem", "direction", "metric", "base", "head", "change", "why")
_COLOURS = {Outcome.SLOWER: "red", Outcome.UNSURE: "yellow", Outcome.FASTER: "green"}


def render(verdicts: Sequence[Verdict], *, verbose: bool = False, colour: bool = False) -> list[str]:
    """Return the table's lines. Cells that need no one's attention are a count, unless ``verbose``.

    Those are ``same`` and the cells that neither side could measure.
    """
    shown = [verdict for verdict in verdicts if verbose or not verdict.quiet]
    lines = []
    if shown:
        head, *rows = table(_HEADER, [_row(verdict) for verdict in shown], right=(5, 6, 7))
        lines = [paint(head, "bold", colour)]
        for verdict, row in zip(shown, rows, strict=True):
            name = _COLOURS.get(verdict.outcome, "red" if verdict.lost else None)
            lines.append(row if name is None else paint(row, name, colour))
    hidden = Counter(verdict.outcome for verdict in verdicts) - Counter(verdict.outcome for verdict in shown)
    if hidden:
        words = {Outcome.SAME: "the same", Outcome.NO_DATA: "measured by neither side"}
        counts = " and ".join(f"{hidden[outcome]} {words[outcome]}" for outcome in words if hidden[outcome])
        lines.append(f"not shown: {counts} (-v shows them)")
    return lines


def notes(base: Run, head: Run, shift: float | None = None, *, stored: bool = True) -> list[str]:
    """Return what may explain a difference: changed versions, a common shift; of stored runs what they cannot show."""
    lines = []
    if stored:
        lines.append(
            "note: stored runs are the weaker form of a gate; "
            "they cannot tell a change of the code from one of the machine"
        )
    if machine := changes(base.machine, head.machine):
        lines.append(f"note: the machine differs: {'; '.join(machine)}")
    if environment := changes(base.environment, head.environment):
        lines.append(f"note: the environment differs: {'; '.join(environment)}")
    if versions := changes(_versions(base.implementations), _versions(head.implementations)):
        lines.append(f"note: implementations differ: {'; '.join(versions)}")
    lines += _builds(base, head)
    if shift is not None:
        lines.append(f"note: every implementation moved alike, {100 * (shift - 1):+.1f} %: suspect the machine first")
    return [printable(line) for line in lines]


def _versions(implementations: Mapping[str, Any]) -> dict[str, Any]:
    return {name: known.get("version") for name, known in implementations.items() if isinstance(known, dict)}


def _builds(base: Run, head: Run) -> list[str]:
    """Return what keeps registers and local memory of compiled kernels from being compared."""
    before, after = kernels_built(base), kernels_built(head)
    lines = []
    for impl in sorted({*before, *after}):
        if impl in before and impl in after:
            sides = ("without", before[impl].keys() - after[impl]), ("with", after[impl].keys() - before[impl])
            if parts := [f"{word} {', '.join(sorted(names))}" for word, names in sides if names]:
                lines.append(f"note: the compiled kernels of {impl} differ: {'; '.join(parts)}")
            continue
        name, run = ("base", base) if impl in after else ("head", head)
        known = run.implementations.get(impl)
        resources = known.get("resources") if isinstance(known, dict) else None
        if isinstance(resources, dict):
            why = resources.get("missing")
            lines.append(f"note: registers of {impl} are not compared, the {name} lacks them: {why}")
    return lines


def _row(verdict: Verdict) -> tuple[str, ...]:
    values = (quantity(verdict.metric, value) for value in (verdict.base, verdict.head))
    return (verdict.word, *verdict.key, verdict.metric, *values, change(verdict), verdict.sentence)
