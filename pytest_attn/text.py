"""Plain text for a terminal: aligned tables, readable quantities, colour only where it is wanted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TextIO

TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_CODES = {"red": "31", "green": "32", "yellow": "33", "bold": "1"}


def wants_colour(stream: TextIO) -> bool:
    """Tell whether ``stream`` takes colour: a terminal, not a dumb one, and ``NO_COLOR`` empty (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, enabled: bool) -> str:
    """Return ``text`` in ``colour`` (``red``, ``green``, ``yellow``, ``bold``) when ``enabled``, else unchanged."""
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if enabled else text


def printable(text: str) -> str:
    r"""Return ``text`` on one line with control characters replaced: names come from other people's files.

    >>> printable("a name\nwith \x1b[31mcolour")
    'a name with ?[31mcolour'
    """
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Return the lines of a table: ``header``, then ``rows``; the columns whose numbers are in ``right`` align right.

    Cells are made :func:`printable`; the last column is not padded.
    """
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def seconds(value: float) -> str:
    """Return a time with three significant digits or more and its unit.

    >>> seconds(0.0123), seconds(4.5e-6), seconds(12.0)
    ('12.30 ms', '4.50 us', '12.00 s')
    """
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * factor >= 1.0:
            return f"{value * factor:.2f} {unit}"
    return f"{value * 1e9:.0f} ns"


def scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    """Return ``value`` to three digits, in the largest unit of which it has at least one, or in the smallest.

    >>> scaled(0.0000425, TIMES), scaled(2.767, TIMES), scaled(0.9999e-3, TIMES)
    ('42.5 µs', '2.77 s', '1 ms')
    """
    size, unit = next((pair for pair in units if value >= 0.9995 * pair[0]), units[-1])
    return f"{value / size:.3g} {unit}"


def count(number: int, noun: str) -> str:
    """Return ``number`` with its noun, in the plural where it needs one.

    >>> count(1, "record"), count(2, "record")
    ('1 record', '2 records')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
