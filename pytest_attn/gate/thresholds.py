"""What counts as a change: :class:`Thresholds`, the only place that holds the gate's numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How far a median must move before the gate speaks. Every condition must hold.

    Attributes:
        relative: least change as a share: 0.05 is five percent. A head that takes ``1 + relative`` times the base is
            at the edge, and so is a base that takes that much longer than the head, so that a change and its revert
            get mirrored verdicts.
        device_floor_s: least change in seconds under a device timer. An event's resolution is about 0.5 us, and a
            kernel of 10 us moves by more than five percent with its launch.
        wall_floor_s: least change in seconds under the wall clock, which also times Python and the scheduler.
        min_rounds: a side with fewer rounds has no spread to speak of; its movements are ``unsure``.

    Raises ``ValueError`` for a number that is negative or not finite.
    """

    relative: float = 0.05
    device_floor_s: float = 2e-6
    wall_floor_s: float = 20e-6
    min_rounds: int = 5

    def __post_init__(self) -> None:
        for name in ("relative", "device_floor_s", "wall_floor_s", "min_rounds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"threshold {name}={value} must be zero or more")

    def floor_s(self, contract: str) -> float:
        """Return the floor in seconds for records taken under ``contract``, e.g. ``"wall/1"``."""
        return self.wall_floor_s if contract.partition("/")[0] == "wall" else self.device_floor_s


def parse_relative(text: str) -> float:
    """Read a share such as ``5%``, ``2.5 %`` or ``0.05``.

    Raises ``ValueError`` for anything else; a bare ``5`` too, which might mean five percent or five times.

    >>> parse_relative("5%"), parse_relative("0.05")
    (0.05, 0.05)
    """
    number, percent, rest = text.strip().partition("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if rest or not math.isfinite(value) or value < 0 or (not percent and value >= 1):
        raise ValueError(f"{text!r} is not a share such as 5% or 0.05")
    return value
