"""Synthetic noise, in log seconds, for judging the gate's rules: what no-change runs look like on five machines.

``locked`` and ``shared`` are after what teams report of locked and of shared machines, ``bursts``, ``drift`` and
``bimodal`` are ``shared`` with one fault more. All noise is independent from cell to cell, which is the worst case for
the chance of any false alarm in a run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ROUNDS = 50
# Standard deviation of a median over that of a mean, for many normal values: sqrt(pi / 2).
_MEDIAN = 1.2533


@dataclass(frozen=True)
class Noise:
    """Relative sizes; ``session``, ``process`` and ``rounds`` are standard deviations.

    ``session`` is common to all processes of one job, ``process`` to all rounds of one process. A share ``bursts`` of
    the processes is slowed by an exponential of mean ``burst``. Over a job the machine drifts in a straight line by a
    normal of ``drift``, and from process to process by a random walk of steps of ``walk``. A share ``modes`` of the
    processes runs slower by ``mode``.
    """

    session: float
    process: float
    rounds: float
    bursts: float = 0.0
    burst: float = 0.25
    drift: float = 0.0
    walk: float = 0.0
    modes: float = 0.0
    mode: float = 0.05


NOISES = {
    "locked": Noise(0.005, 0.004, 0.01),
    "shared": Noise(0.03, 0.01, 0.03),
    "bursts": Noise(0.03, 0.01, 0.03, bursts=0.08),
    "drift": Noise(0.03, 0.01, 0.03, drift=0.06, walk=0.01),
    "bimodal": Noise(0.03, 0.01, 0.03, modes=0.3),
}


def processes(noise: Noise, cells: int, count: int, rng: np.random.Generator) -> Array:
    """Return what ``count`` processes, one after the other in one job, add to each cell: ``[cells, count]``."""
    level = rng.normal(0, noise.session, (cells, 1)) + rng.normal(0, noise.process, (cells, count))
    if noise.bursts:
        slowed = rng.random((cells, count)) < noise.bursts
        level += slowed * np.log1p(rng.exponential(noise.burst, (cells, count)))
    if noise.drift:
        level += rng.normal(0, noise.drift, (cells, 1)) * np.arange(count) / count
    if noise.walk:
        level += np.cumsum(rng.normal(0, noise.walk, (cells, count)), axis=1)
    if noise.modes:
        level += (rng.random((cells, count)) < noise.modes) * np.log1p(noise.mode)
    return level


def paired_ratios(noise: Noise, cells: int, pairs: int, rng: np.random.Generator) -> Array:
    """Return log ratios, head over base, of ``pairs`` pairs in the order A B B A ...: ``[cells, pairs]``."""
    medians = processes(noise, cells, 2 * pairs, rng)
    medians += rng.normal(0, noise.rounds * _MEDIAN / np.sqrt(ROUNDS), medians.shape)
    first, second = medians[:, 0::2], medians[:, 1::2]
    return np.where(np.arange(pairs) % 2 == 0, second - first, first - second)


def stored_rounds(noise: Noise, cells: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return the rounds of a process of the base and of the head, each of a job of its own: ``[cells, ROUNDS]``."""
    levels = [processes(noise, cells, 1, rng) for _ in range(2)]
    # The head's job comes when the base's has ended, so that it finds the machine drifted.
    levels[1] += rng.normal(0, noise.drift, (cells, 1))
    base, head = (level + rng.normal(0, noise.rounds, (cells, ROUNDS)) for level in levels)
    return base, head
