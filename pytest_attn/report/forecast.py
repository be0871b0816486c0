"""What would have happened: memory where it ran out, predicted from what the same implementation needed elsewhere.

Peak memory over the inputs is modelled as ``scores * S + traffic * T``, with S the bytes of one score matrix (batch *
heads * q_len * kv_len elements of the problem's dtype) and T the least traffic of the problem (inputs and outputs).
The two factors are fitted to the measured points of one implementation, direction and mask, by least squares of the
relative error, neither below zero. A fit that misses a point by more than a tenth predicts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from attn_impls.problem import DTYPE_BYTES
from pytest_attn.report.words import digits, percent

_LEAST_POINTS, _MOST_ERROR = 3, 0.1

Key = tuple[str, str, str]
"""(series, problem id, direction)."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Factors of one series, direction and mask, the number of points they rest on, and the largest relative error."""

    scores: float
    traffic: float
    points: int
    error: float

    def __str__(self) -> str:
        """Say how it predicts."""
        parts = [f"{digits(self.scores, 2)} × the score matrix"] if self.scores > 0 else []
        parts += [f"{digits(self.traffic, 2)} × inputs and outputs"] if self.traffic > 0 else []
        return f"{' + '.join(parts)}, fitted to {self.points} measured points (off by {percent(self.error)} at most)"


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicted bytes of records that ran out of memory, and the fits behind them by (series, direction, mask)."""

    bytes: dict[Key, float] = field(default_factory=dict)
    fits: dict[tuple[str, str, str], Fit] = field(default_factory=dict)


def forecast(frame: pd.DataFrame) -> Forecast:
    """Return what the records of ``frame`` that ran out of memory would have needed, where a fit says so."""
    made = Forecast()
    gone = frame[frame["status"] == "oom"]
    keys = ["series", "direction", "mask"]
    for (series, direction, mask), missing in gone.groupby(keys, sort=True):
        same = (frame["series"] == series) & (frame["direction"] == direction) & (frame["mask"] == mask)
        fit = _fit(frame[same & frame["ok"] & (frame["memory"] > 0)])
        if fit is None:
            continue
        made.fits[str(series), str(direction), str(mask)] = fit
        bytes_ = fit.scores * _score_bytes(missing) + fit.traffic * missing["min_bytes"]
        made.bytes.update(
            ((str(series), str(problem), str(direction)), float(value))
            for problem, value in zip(missing["problem_id"], bytes_, strict=True)
        )
    return made


def _score_bytes(rows: pd.DataFrame) -> pd.Series:
    # In floats: the largest problems that a file may name overflow 64 bits.
    elements = rows["batch"].astype(float) * rows["heads"] * rows["q_len"] * rows["kv_len"]
    return elements * rows["dtype"].map(DTYPE_BYTES)


def _fit(rows: pd.DataFrame) -> Fit | None:
    if len(rows) < _LEAST_POINTS:
        return None
    peak = rows["memory"].to_numpy(dtype=float)
    # Dividing by the measured value makes least squares judge relative errors: the target is 1 everywhere.
    columns = np.stack([_score_bytes(rows).to_numpy() / peak, rows["min_bytes"].to_numpy() / peak], axis=1)
    best: Fit | None = None
    for used in ([0, 1], [0], [1]):  # the best with no factor below zero lies on one of these faces
        factors = np.zeros(2)
        factors[used] = np.linalg.lstsq(columns[:, used], np.ones(len(peak)), rcond=None)[0]
        error = float(np.abs(columns @ factors - 1).max())
        if (factors >= 0).all() and (best is None or error < best.error):
            best = Fit(float(factors[0]), float(factors[1]), len(rows), error)
    return best if best is not None and best.error <= _MOST_ERROR else None
