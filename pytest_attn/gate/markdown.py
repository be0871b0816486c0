"""The verdicts as Markdown for a job's summary, the worst first, cut to what a summary may hold."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pytest_attn.gate.shown import change, quantity, summary
from pytest_attn.gate.verdict import Verdict
from pytest_attn.text import count, printable

# GitHub drops a step's summary that is larger than 1 MiB; other tools of the step write to the same file.
LIMIT = 960 * 1024

_HEADER = (
    "| verdict | implementation | problem | direction | metric | base | head | change | why |",
    "|---|---|---|---|---|--:|--:|--:|---|",
)


def markdown(verdicts: Sequence[Verdict], code: int, *, notes: Sequence[str] = (), limit: int = LIMIT) -> str:
    """Return a page of at most ``limit`` bytes in UTF-8.

    Args:
        verdicts: the worst first, as the judges return them.
        code: the gate's exit code.
        notes: sentences to put under the heading.
        limit: in bytes; rows that do not fit are left out, from the end, and a sentence says how many.
    """
    shown = [verdict for verdict in verdicts if not verdict.quiet]
    top = [f"### Attention gate: {'failed' if code else 'passed'}", "", _escaped(summary(verdicts, code)), ""]
    for note in notes:
        top += [_escaped(note), ""]
    rest = len(verdicts) - len(shown)
    hidden = ["", f"Not shown: {count(rest, 'verdict')} that need no attention."] if rest else []
    rows = [_row(verdict) for verdict in shown]
    # The sentence on what was left out is at most this long.
    room = limit - sum(_size(line) for line in (*top, *_HEADER, *hidden)) - 120
    kept = 0
    for row in rows:
        room -= _size(row)
        if room < 0:
            break
        kept += 1
    lines = [*top, *(_HEADER if kept else ()), *rows[:kept], *hidden]
    if left_out := len(rows) - kept:
        lines += ["", f"{count(left_out, 'further verdict')} did not fit here; the JSON has all of them."]
    return _cut("\n".join(lines) + "\n", limit)


def _row(verdict: Verdict) -> str:
    values = (quantity(verdict.metric, value) for value in (verdict.base, verdict.head))
    word = f"**{verdict.word}**" if verdict.badness[0] < 2 else verdict.word
    cells = (*verdict.key, verdict.metric, *values, change(verdict), verdict.sentence)
    return f"| {word} | {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(text: str) -> str:
    r"""Return ``text``, which may be of someone else, so that it shows as it is inside a table.

    >>> _escaped("a|b <i> *c*")
    'a\\|b &lt;i&gt; \\*c\\*'
    """
    plain = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", plain)


def _size(line: str) -> int:
    return len(line.encode("utf-8", "replace")) + 1


def _cut(text: str, limit: int) -> str:
    """Return at most ``limit`` bytes of ``text``: heading and notes alone may be too long."""
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")
