"""What counts as a change: :class:`Thresholds`, the only place that holds the gate's numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from pytest_attn.gate.verdict import Key

ACTIONS = ("fail", "warn", "off")

NOISE_FACTOR = 3
"""A movement must be this many times what the same tree moves by against itself."""


def _check_numbers(thresholds: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(thresholds, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"threshold {name}={value} must be zero or more")


@dataclass(frozen=True, slots=True)
class Limit:
    """How far an exact metric may grow. It changed when it moved beyond the share *and* beyond the floor.

    Attributes:
        relative: share of the base, 0.01 is one percent.
        floor: in the metric's own unit (bytes, launches, registers, error ratio).
        action: what growth is: ``fail`` the outcome ``slower``, ``warn`` ``unsure``; ``off`` leaves the metric out.

    Raises ``ValueError`` for a number that is negative or not finite and for an unknown action.
    """

    relative: float = 0.0
    floor: float = 0.0
    action: str = "fail"

    def __post_init__(self) -> None:
        _check_numbers(self, ("relative", "floor"))
        if self.action not in ACTIONS:
            raise ValueError(f"action {self.action!r} is not one of {', '.join(ACTIONS)}")


# Bytes are the same in every run of the same code, up to what an allocator rounds. Which kernels run is a library's
# choice as often as the author's, so that a change of them is worth a word and no failure.
EXACT: Mapping[str, Limit] = MappingProxyType(
    {
        "peak_bytes": Limit(0.01, 65536),
        "workspace_bytes": Limit(0.01, 65536),
        "saved_bytes": Limit(0.01, 65536),
        "kernel_count": Limit(action="warn"),
        "kernel_names": Limit(action="warn"),
        "error_ratio": Limit(0.05, 0.05),
        "registers": Limit(0.1, 8),  # a multiprocessor gives them out in eights a thread
        "local_bytes": Limit(),
    }
)


@dataclass(frozen=True, slots=True)
class Override:
    """Thresholds of the cells whose ``"impl problem_id direction"`` matches ``pattern`` (:mod:`fnmatch`)."""

    pattern: str
    time: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How far a median must move before the gate speaks. Every condition must hold.

    Attributes:
        relative: least change as a share: 0.05 is five percent. A head that takes ``1 + relative`` times the base is
            at the edge, and so is a base that takes that much longer than the head, so that a change and its revert
            get mirrored verdicts.
        device_floor_s: least change in seconds under a device timer, whose resolution is about 0.5 us.
        wall_floor_s: least change in seconds under the wall clock, which also times Python and the scheduler.
        min_rounds: stored runs: a side with fewer rounds has no spread to speak of; its movements are ``unsure``.
        min_pairs: paired runs: with fewer pairs a cell is ``unsure``.
        pair_relative: a pair agrees with a movement when it moved the same way by more than this share.
        agreement: least share of the pairs that must agree.
        clock: paired runs: a median difference of the SM clock beyond this share may explain a movement.
        metrics: limits of the exact metrics.
        cells: exceptions by pattern of cell; where several match, the last one that sets a value has it.
        noise: noise floors by ``"impl problem_id direction"``, as logarithms (:mod:`~pytest_attn.gate.noise`). A cell's
            share is at least :data:`NOISE_FACTOR` times its floor.
        raised: of one cell: its ``relative`` is what its noise asks for, and more than was set.

    ``reports/gate/README.md`` shows what the defaults find and how often they alarm on nothing.

    Raises ``ValueError`` for a number that is negative or not finite.
    """

    relative: float = 0.025
    device_floor_s: float = 1e-6
    wall_floor_s: float = 20e-6
    min_rounds: int = 5
    min_pairs: int = 7
    pair_relative: float = 0.01
    agreement: float = 0.6
    clock: float = 0.02
    metrics: Mapping[str, Limit] = field(default_factory=lambda: dict(EXACT))
    cells: tuple[Override, ...] = ()
    noise: Mapping[str, float] = field(default_factory=dict)
    raised: bool = False

    def __post_init__(self) -> None:
        _check_numbers(self, TIME_FIELDS)
        if self.agreement > 1:
            raise ValueError(f"threshold agreement={self.agreement} must be at most 1")
        if self.min_pairs < 1:
            raise ValueError("threshold min_pairs=0 must be one or more")

    def floor_s(self, contract: str) -> float:
        """Return the floor in seconds for records taken under ``contract``, e.g. ``"wall/1"``."""
        return self.wall_floor_s if contract.partition("/")[0] == "wall" else self.device_floor_s

    def needed(self, pairs: int) -> int:
        """Return how many of ``pairs`` must agree.

        >>> [Thresholds().needed(n) for n in (7, 11, 15)]
        [5, 7, 9]
        """
        return math.ceil(self.agreement * pairs - 1e-9)

    def for_cell(self, key: Key) -> Thresholds:
        """Return what holds for ``key``: these thresholds with its exceptions applied, and raised to its noise.

        >>> Thresholds(noise={"naive b1 fwd": 0.02}).for_cell(("naive", "b1", "fwd")).said
        '; its noise asks for more than 6.18 %'
        """
        name = " ".join(key)
        time: dict[str, Any] = {}
        metrics = dict(self.metrics)
        for override in self.cells:
            if fnmatchcase(name, override.pattern):
                time |= override.time
                for metric, changes in override.metrics.items():
                    metrics[metric] = dataclasses.replace(metrics[metric], **changes)
        found = dataclasses.replace(self, **time, metrics=metrics, cells=()) if self.cells else self
        least = math.expm1(NOISE_FACTOR * self.noise.get(name, 0.0))
        return dataclasses.replace(found, relative=least, noise={}, raised=True) if least > found.relative else found

    @property
    def said(self) -> str:
        """What to add to a sentence on a cell whose share its noise has raised; empty for any other."""
        return f"; its noise asks for more than {100 * self.relative:.3g} %" if self.raised else ""


TIME_FIELDS = (
    "relative",
    "device_floor_s",
    "wall_floor_s",
    "min_rounds",
    "min_pairs",
    "pair_relative",
    "agreement",
    "clock",
)

STORED = Thresholds(relative=0.05, device_floor_s=2e-6)
"""For two stored runs: no pairs take the machine out of the difference, so that it must be larger to mean anything."""


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
