"""The verdicts as GitHub's workflow commands, ``::error`` and ``::warning``: one for an implementation, not for a cell.

GitHub shows ten of each kind a step and drops the rest, so that the rest goes into one last line. The escapes are those
of actions/toolkit, ``packages/core/src/command.ts``.
"""

from __future__ import annotations

from collections.abc import Sequence

from pytest_attn.gate.shown import change
from pytest_attn.gate.verdict import TIME, Outcome, Verdict
from pytest_attn.text import count, printable

MOST = 10


def workflow_commands(verdicts: Sequence[Verdict], *, fail_on_lost: bool = False, most: int = MOST) -> list[str]:
    """Return at most ``most`` commands, errors first.

    An error is what fails the gate; cells that were lost or that are unsure are warnings.

    Args:
        verdicts: the worst first, as the judges return them.
        fail_on_lost: whether lost cells fail the gate.
        most: at least one.
    """
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        level = _level(verdict, fail_on_lost)
        if level is not None:
            groups.setdefault((level, verdict.impl), []).append(verdict)
    found = [(level, _message(impl, group)) for (level, impl), group in groups.items()]
    found.sort(key=lambda each: each[0])  # "error" before "warning", otherwise as they came: the worst first
    if len(found) > most:
        rest = found[most - 1 :]
        found = [*found[: most - 1], (rest[0][0], f"and {len(rest)} more like these; the job's summary has all")]
    return [f"::{level} title={_property('attn gate')}::{_data(message)}" for level, message in found]


def _level(verdict: Verdict, fail_on_lost: bool) -> str | None:
    if verdict.outcome is Outcome.SLOWER or (verdict.lost and fail_on_lost):
        return "error"
    return "warning" if verdict.lost or verdict.outcome is Outcome.UNSURE else None


def _message(impl: str, group: Sequence[Verdict]) -> str:
    words = list(dict.fromkeys(verdict.word for verdict in group))
    counts = ", ".join(f"{sum(verdict.word == word for verdict in group)} {word}" for word in words)
    worst = group[0]
    metric = "" if worst.metric == TIME else f" {worst.metric}"
    moved = f" {change(worst)}:" if change(worst) and worst.sentence[:1] not in "+-" else ":"
    cells = count(len({verdict.key for verdict in group}), "cell")
    return f"{impl}: {counts} ({cells}); {worst.problem_id} {worst.direction}{metric}{moved} {worst.sentence}"


def _data(text: str) -> str:
    """Escape a message; control characters go, and so does a newline that would start another command."""
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
