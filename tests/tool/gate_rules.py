"""The gate's rules and two others in vector form, for simulations: each tells which cells it would call slower."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pytest_attn.gate.thresholds import STORED, Thresholds
from tests.tool.gate_noise import Array

Flags = NDArray[np.bool_]


def slower_by_pairs(ratios: Array, thresholds: Thresholds = Thresholds()) -> Flags:
    """Ours on pairs, one stage: :func:`pytest_attn.gate.paired.judge_ratios` without floor and clock.

    ``ratios`` are log ratios, head over base: ``[cells, pairs]``.
    """
    agreeing = (ratios > np.log1p(thresholds.pair_relative)).sum(axis=1)
    far = np.median(ratios, axis=1) > np.log1p(thresholds.relative)
    return np.asarray(far & (agreeing >= thresholds.needed(ratios.shape[1])))


def slower_by_stored(base: Array, head: Array, thresholds: Thresholds = STORED) -> Flags:
    """Ours on two stored runs, :mod:`pytest_attn.gate.rule`: ``[cells, rounds]`` of log seconds a side."""
    far = np.median(head, axis=1) - np.median(base, axis=1) > np.log1p(thresholds.relative)
    return np.asarray(far & (np.quantile(head, 0.1, axis=1) > np.quantile(base, 0.9, axis=1)))


def slower_by_median(base: Array, head: Array, percent: float = 5) -> Flags:
    """``--benchmark-compare-fail=median:5%`` of pytest-benchmark on one stored run."""
    return np.asarray(np.median(head, axis=1) - np.median(base, axis=1) > np.log1p(percent / 100))


def slower_by_mann_whitney(base: Array, head: Array, alpha_z: float = 1.959964) -> Flags:
    """Mann-Whitney's U on rounds, two-sided p < 0.05 by the normal approximation; rounds are continuous: no ties."""
    n = base.shape[1]
    order = np.argsort(np.concatenate([base, head], axis=1), axis=1)
    # The ranks of the head's rounds are the places, from 1 on, where the sorted row holds one of them.
    rank_sum = ((order >= n) * np.arange(1, 2 * n + 1)).sum(axis=1)
    u = rank_sum - n * (n + 1) / 2
    z = (u - n * n / 2) / np.sqrt(n * n * (2 * n + 1) / 12)
    return np.asarray(z > alpha_z)
