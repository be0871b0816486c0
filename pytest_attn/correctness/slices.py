"""Judge a problem too long to judge whole: some queries against all keys, and some keys against all queries.

``out`` and ``dq`` of a query need nothing of another one, so that a range of queries is a problem of its own, with
fewer queries and the same keys. ``dk`` and ``dv`` of a key need the forward pass of every query that sees it, which is
done in parts, so that memory stays bounded; only the columns of the judged keys are worked out backward.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from attn_impls.implementation import Implementation
from attn_impls.naive import naive
from attn_impls.problem import FULL, Direction, Mask, Problem
from pytest_attn.correctness.budget import TensorVerdict
from pytest_attn.correctness.case import Tensors
from pytest_attn.correctness.oracle import rows_that_see, solve
from pytest_attn.correctness.running import run
from pytest_attn.correctness.standard import Standard, earned_by, standard

# Queries, and keys, that are judged: two tiles of most kernels. Fewer queries where the keys are very many.
_JUDGED = 256
_FEWEST = 16
# Scores that the oracle, with about twenty float64 matrices of them, and naive, with about six, may hold: 0.6 GiB, or
# up to 2.5 GiB, a thirty-second of a CUDA device's memory, where launching for many small parts would take longer.
_MOST_SCORES = 2**22
_MOST_SCORES_ON_CUDA = 2**24
_MOST_NAIVE_SCORES = 2**24


@dataclass(frozen=True, slots=True, eq=False)
class SliceStandard:
    """What slices of results are compared with: the queries ``rows``, and the keys ``keys`` for ``dk`` and ``dv``."""

    rows: slice
    by_row: Standard
    keys: slice
    by_key: Standard | None

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return self.by_row.nbytes + (0 if self.by_key is None else self.by_key.nbytes)

    def judge(self, got: Mapping[str, torch.Tensor]) -> list[TensorVerdict]:
        """Compare the slices of ``out [batch, heads, q_len, head_dim]`` and of ``dq, dk, dv`` where they are given."""
        verdicts = self.by_row.judge({name: got[name][..., self.rows, :] for name in ("out", "dq") if name in got})
        if self.by_key is not None:
            verdicts += self.by_key.judge({name: got[name][..., self.keys, :] for name in ("dk", "dv")})
        return verdicts


def slice_standard(
    problem: Problem, tensors: Tensors, *, gradients: bool, pick: random.Random | None = None
) -> SliceStandard:
    """Work out what slices are compared with, under the budget that ``naive`` earns on these slices.

    Of ``out`` and ``dq`` a range of queries, of ``dk`` and ``dv`` one of keys: at the end, where an offset that
    overflowed and a tile that was left out show, or anywhere that ``pick`` says.

    Args:
        problem: of one key head, or the cost is a multiple.
        tensors: its inputs.
        gradients: whether ``dq, dk, dv`` are to be judged.
        pick: draws the place.
    """
    group = problem.heads // problem.kv_heads
    most_scores = _most_scores(tensors.q.device)
    affordable = max(_FEWEST, most_scores // (group * problem.kv_len))
    rows = _range(rows_that_see(problem, slice(0, problem.kv_len)), min(_JUDGED, affordable), pick)
    part, inputs, _ = cut_rows(problem, tensors, rows)
    by_row = standard(part, inputs, gradients=gradients)
    if not gradients:
        return SliceStandard(rows, by_row, slice(0), None)
    keys = _range(slice(0, problem.kv_len), _JUDGED, pick)
    truth = solve(problem, tensors, gradients=True, keys=keys, most_scores=most_scores)
    results = functools.partial(naive_of_keys, problem, tensors, keys)
    return SliceStandard(rows, by_row, keys, earned_by(results, problem, truth))


def _most_scores(device: torch.device) -> int:
    if device.type != "cuda":
        return _MOST_SCORES
    memory = int(torch.cuda.get_device_properties(device).total_memory)
    return min(_MOST_SCORES_ON_CUDA, max(_MOST_SCORES, memory // (32 * 20 * 8)))


def _range(among: slice, most: int, pick: random.Random | None) -> slice:
    size = min(most, among.stop - among.start)
    last = among.stop - size
    start = last if pick is None else pick.randint(among.start, last)
    return slice(start, start + size)


def cut_rows(problem: Problem, tensors: Tensors, rows: slice) -> tuple[Problem, Tensors, slice]:
    """Return the part of a problem that is the queries ``rows``, as views, and the range of the keys that it keeps.

    Keys that none of these queries sees are left out, which changes no result. What is left has diagonals that one of
    the masks describes: without that a range of causal queries would need a mask that is neither end's.

    Raises:
        ValueError: none of these queries sees a key.
    """
    low, high = problem.mask.diagonals(problem.q_len, problem.kv_len)
    first = 0 if low is None else max(0, rows.start + low)
    end = problem.kv_len if high is None else min(problem.kv_len, rows.stop + high)
    if first >= end:
        raise ValueError(f"the queries {rows.start} to {rows.stop - 1} of {problem.id} see no key")
    # The last query of the part, rows.stop - 1, is at the diagonal `shift` when it is at its last key, end - 1.
    shift = end - rows.stop
    mask = FULL
    if low is not None or high is not None:
        left, right = (None if low is None else shift - low), (None if high is None else high - shift)
        mask = Mask("window", left, right)
    keys = slice(first, end)
    part = replace(problem, q_len=rows.stop - rows.start, kv_len=end - first, mask=mask)
    q, dout = (tensor[:, :, rows] for tensor in (tensors.q, tensors.dout))
    k, v = (tensor[:, :, keys] for tensor in (tensors.k, tensors.v))
    return part, Tensors(q, k, v, dout), keys


def naive_of_keys(
    problem: Problem,
    tensors: Tensors,
    keys: slice,
    order: Implementation = naive,
    most_scores: int = _MOST_NAIVE_SCORES,
) -> dict[str, torch.Tensor]:
    """Return ``naive``'s ``dk`` and ``dv`` of the range ``keys``, ``[batch, kv_heads, keys, head_dim]``, in one order.

    Its score matrix would be too large, so it runs on parts of the queries, and the parts are added up in float32 and
    rounded once more to the dtype. One rounding of each part is more error than naive has on the whole: at most what
    the rounding of the weights, or of their gradients, gives the same part.
    """
    like = tensors.k[:, :, keys]
    sums = {name: torch.zeros(like.shape, dtype=torch.float32, device=like.device) for name in ("dk", "dv")}
    seeing = rows_that_see(problem, keys)
    step = max(1, most_scores // (problem.batch * problem.heads * problem.kv_len))
    for start in range(seeing.start, seeing.stop, step):
        part, inputs, kept = cut_rows(problem, tensors, slice(start, min(start + step, seeing.stop)))
        gradients = run(order, part, inputs, Direction.BWD)
        first, end = max(kept.start, keys.start), min(kept.stop, keys.stop)
        for name, total in sums.items():
            total[:, :, first - keys.start : end - keys.start] += gradients[name][
                :, :, first - kept.start : end - kept.start
            ]
    return {name: total.to(like.dtype) for name, total in sums.items()}
