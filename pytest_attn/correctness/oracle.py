"""The float64 oracle: forward, LSE and gradients by explicit formulas, and how ill-conditioned each element is.

It shares no code with any implementation, and does not use autograd: the gradients are those of FlashAttention
(Dao et al. 2022, arXiv:2205.14135, appendix B.2), written out. A row of queries needs nothing of another, so long
sequences are done in slices of rows, whose contributions to dk and dv add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from attn_impls.problem import Problem
from pytest_attn.correctness.case import Tensors

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Float64 results by name (``out, lse`` and, when asked for, ``dq, dk, dv``), and how far rounding may move them.

    Attributes:
        exact: the results.
        noise: of the shape of ``exact[name]``, for inputs of the case's dtype: the error in that element when every
            intermediate is rounded to the dtype once and accumulated in float32, all roundings to the worse side.
        scatter: the same when the roundings are independent and their squares add up: an error to be expected where
            many elements are averaged. At most of the order of ``noise``, and smaller by the root of the number of
            keys where many keys share a weight.
        by_log_scale: ``d out / d log(scale)`` as ``"out"``: where an error of the softmax scale moves the output.
        by_exp: as ``"out"``, what it moves by where all exponentials are too small alike, by what exp may be off, but
            for the one of the row's largest logit, which is 1.
        terms: of the longest float32 sum.

    Where gradients were asked for of some keys alone, there are only ``dk, dv``, of these keys.
    """

    exact: dict[str, Tensor]
    noise: dict[str, Tensor]
    scatter: dict[str, Tensor]
    by_log_scale: dict[str, Tensor]
    by_exp: dict[str, Tensor]
    terms: int = 1


# Vectorised exp in use: PyTorch's CPU flash kernel allows itself 20 ulp, CUDA's ex2.approx 2.
_EXP_ULP = 4
# Kernels for 16-bit numbers take CUDA's tanh.approx.f32, which is right to 2^-11 of itself (PTX ISA, tanh). That is its
# worst, and the budget grants four times what stands here: half of it lets every error of that size pass.
_TANH_APPROX = 2.0**-12
# Scores in one slice. About twenty float64 matrices of this size are alive at once: 1.3 GiB.
_MOST_SCORES = 2**23


def solve(
    problem: Problem,
    tensors: Tensors,
    *,
    gradients: bool,
    keys: slice | None = None,
    most_scores: int = _MOST_SCORES,
) -> Truth:
    """Compute the truth for ``tensors`` in float64, on their device.

    With ``keys``, a range of the keys, only its ``dk`` and ``dv``, ``[batch, kv_heads, keys, head_dim]``, each what it
    is among all. The queries that see none of them are left out; of the others the forward pass is done over all keys.

    Memory: about twenty float64 matrices of ``most_scores`` elements and five times the results.
    """
    solver = _Solver(problem, tensors, gradients, keys)
    rows = slice(0, problem.q_len) if keys is None else rows_that_see(problem, keys)
    for part in _slices(problem, rows, most_scores):
        solver.add(*part)
    return solver.truth()


def rows_that_see(problem: Problem, keys: slice) -> slice:
    """Return the range, maybe empty, of the queries that see at least one key of the range ``keys``."""
    low, high = problem.mask.diagonals(problem.q_len, problem.kv_len)
    first = 0 if high is None else max(0, keys.start - high)
    end = problem.q_len if low is None else min(problem.q_len, keys.stop - low)
    return slice(first, max(first, end))


def _slices(problem: Problem, rows: slice, most_scores: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield slices of the batch, of the key heads and of ``rows`` with at most ``most_scores`` scores, if it can."""
    everything = slice(None)
    a_row = problem.heads // problem.kv_heads * problem.kv_len
    if problem.batch * problem.kv_heads * (rows.stop - rows.start) * a_row <= most_scores:
        yield everything, everything, rows
        return
    step = max(1, most_scores // a_row)
    for b in range(problem.batch):
        for h in range(problem.kv_heads):
            for start in range(rows.start, rows.stop, step):
                yield slice(b, b + 1), slice(h, h + 1), slice(start, min(start + step, rows.stop))


class _Solver:
    """The sums over slices. Inside, queries are ``[batch, kv_heads, group, rows, head_dim]`` and keys have group 1."""

    def __init__(self, problem: Problem, tensors: Tensors, gradients: bool, keys: slice | None) -> None:
        group = problem.heads // problem.kv_heads
        self.problem, self.gradients, self.keys = problem, gradients, keys
        self.q, self.dout = (t.detach().unflatten(1, (problem.kv_heads, group)) for t in (tensors.q, tensors.dout))
        self.k, self.v = (t.detach().unsqueeze(2) for t in (tensors.k, tensors.v))
        self.finfo, self.finfo32 = torch.finfo(tensors.q.dtype), torch.finfo(torch.float32)
        self.unit = self.finfo.eps / 2  # one rounding to the dtype
        self.unit32 = self.finfo32.eps / 2  # one rounding in the accumulator
        self.step = self.finfo.smallest_normal * self.finfo.eps  # between the numbers next to 0
        # What a weight or its gradient loses there; in float32, exp may give 0 below the normal numbers.
        self.underflow = max(self.step / 2, self.finfo32.smallest_normal)
        self.tanh_error = 0.0 if tensors.q.dtype == torch.float32 else _TANH_APPROX
        like: dict[str, Tensor] = {}
        if keys is None:
            like = {"out": self.q, "lse": self.q[..., 0]} | ({"dq": self.q} if gradients else {})
            self.by_log_scale, self.by_exp = self._zeros(self.q), self._zeros(self.q)
        if gradients:
            like |= dict.fromkeys(("dk", "dv"), self.k if keys is None else self.k[..., keys, :])
        self.exact, self.noise, self.scatter = ({name: self._zeros(like[name]) for name in like} for _ in range(3))

    @staticmethod
    def _zeros(like: Tensor) -> Tensor:
        return torch.zeros(like.shape, dtype=torch.float64, device=like.device)

    def add(self, batch: slice, head: slice, rows: slice) -> None:
        """Add what the queries ``rows`` of some heads give."""
        problem, unit, unit32 = self.problem, self.unit, self.unit32
        here = (batch, head, slice(None), rows)
        q = self.q[here].double()
        k, v = self.k[batch, head].double(), self.v[batch, head].double()
        scale, cap = problem.softmax_scale, problem.softcap

        raw = (scale * q) @ k.mT
        squash = None if cap is None else torch.tanh(raw / cap)
        logits = raw if squash is None or cap is None else cap * squash
        slope = 1.0 if squash is None else 1 - squash.square()  # d logit / d raw
        hidden = _hidden(problem, rows, q.device)
        logits = _filled(logits, hidden, -math.inf)
        lse = logits.logsumexp(dim=-1)
        finite_lse = lse.masked_fill(lse == -math.inf, 0.0)  # of rows without a key
        below = logits - finite_lse.unsqueeze(-1)
        weights = torch.exp(below)
        out = weights @ v

        # A logit is a float32 sum of head_dim products, whose error grows as the square root of their number (Higham
        # and Mary 2019, doi:10.1137/18M1226312), half of it where several accumulators share the sum. That absolute
        # error is a relative error of the weight it becomes; a backward that computes the logits again, in another
        # order, makes it twice. So is the rounding of exp's argument, which grows with the distance from the row's
        # maximum, and exp's own.
        size = scale * _filled(q.abs() @ k.abs().mT, hidden, 0.0).amax(dim=-1, keepdim=True)
        # tanh in use is 1 - 2 / (exp(2x) + 1) or like it: near 0 it is right to a rounding of 1, not of itself. So is
        # the logit to a rounding of the cap, and the slope 1 - tanh^2 to one of 1, near 0 as well. Where tanh itself is
        # approximate, so is the logit, and where it saturates the slope may be all error.
        logit_noise = _growth(problem.head_dim) * unit32 * size + (0.0 if cap is None else 2 * cap * unit32)
        squashed: float | Tensor = 0.0 if cap is None else 4 * unit32
        lse_by_tanh: float | Tensor = 0.0
        relative = _filled(below.abs_(), hidden, 0.0).mul_(unit32).add_(unit + 2 * logit_noise + unit32 * _EXP_ULP)
        if squash is not None and self.tanh_error:
            squashed = 4 * unit32 + 2 * self.tanh_error * squash.square()  # d(1 - tanh^2) = 2 tanh d(tanh)
            by_tanh = _filled(self.tanh_error * logits.abs(), hidden, 0.0)
            lse_by_tanh = (weights * by_tanh).sum(dim=-1)
            # A weight moves with its own logit, and with the total.
            relative.add_(by_tanh).add_(lse_by_tanh.unsqueeze(-1))
        uncertain = _filled(relative.mul_(weights).add_(self.underflow), hidden, 0.0)
        # Independent errors of the weights add up in squares; beside them float32 sums over the keys, and what all
        # keys of a row share: their equal weights round alike, and so does the total that they are divided by.
        sum_over_keys = unit32 * _growth(problem.kv_len)
        uncertain_squared = uncertain.add(weights, alpha=sum_over_keys).square_()
        out_scatter = (uncertain_squared @ v.square()).sqrt() + (unit + sum_over_keys) * out.abs()
        if self.keys is None:
            by_log_scale = _filled(slope * raw, hidden, 0.0)
            by_log_scale = by_log_scale - (weights * by_log_scale).sum(dim=-1, keepdim=True)
            self.exact["out"][here], self.exact["lse"][here] = out, lse
            self.noise["out"][here] = uncertain @ v.abs() + unit * out.abs()
            self.scatter["out"][here] = out_scatter
            self.by_log_scale[here] = (weights * by_log_scale) @ v
            largest = logits.argmax(dim=-1, keepdim=True)
            to_largest = v.take_along_dim(largest, dim=-2) - out
            self.by_exp[here] = unit32 * _EXP_ULP * weights.gather(-1, largest) * to_largest
            for found in (self.noise, self.scatter):
                # Terms that are almost equal lose the same in every addition, so their sum loses twice what others do.
                found["lse"][here] = (
                    logit_noise.squeeze(-1) + 2 * sum_over_keys + unit32 * (_EXP_ULP + finite_lse.abs()) + lse_by_tanh
                )
        if not self.gradients:
            return

        dout = self.dout[here].double()
        delta = (dout * out).sum(dim=-1, keepdim=True)
        delta_spread = (dout.abs() * (weights @ v.abs())).sum(dim=-1, keepdim=True)
        delta_spread_squared = (dout.square() * (weights @ v.square())).sum(dim=-1, keepdim=True)
        if self.keys is not None:  # from here on a key needs nothing of another
            k, v = k[..., self.keys, :], v[..., self.keys, :]
            hidden = None if hidden is None else hidden[:, self.keys]
            slope = slope if isinstance(slope, float) else slope[..., self.keys]
            squashed = squashed if isinstance(squashed, float) else squashed[..., self.keys]
            weights, uncertain, uncertain_squared = (
                tensor[..., self.keys] for tensor in (weights, uncertain, uncertain_squared)
            )
        dlogits = slope * weights * (dout @ v.mT - delta)
        # dP and delta are sums of products of rounded numbers, and their difference may cancel.
        spread = dout.abs() @ v.abs().mT + delta_spread
        # Under a softcap, flash-attn rounds them times what stands beside q k in tanh's argument: fp16's steps are wide
        # there.
        lost = self.underflow * (1.0 if cap is None else max(1.0, cap / scale))
        dlogits_noise = _filled((slope * uncertain + squashed * weights) * spread + lost, hidden, 0.0)
        spread_squared = dout.square() @ v.square().mT + delta_spread_squared
        dlogits_squared = (slope**2 * uncertain_squared + (squashed * weights).square()) * spread_squared
        dlogits_squared = _filled(dlogits_squared + lost**2, hidden, 0.0)
        # The error of delta, which comes from the rounded output, moves all keys of a row alike.
        by_delta = slope * weights * (dout.square() * out_scatter.square()).sum(dim=-1, keepdim=True).sqrt()
        if self.keys is None:
            self.exact["dq"][here] = scale * (dlogits @ k)
            self.noise["dq"][here] = scale * (dlogits_noise @ k.abs())
            self.scatter["dq"][here] = scale * ((dlogits_squared @ k.square()).sqrt() + (by_delta @ k).abs())
        heads = (batch, head)
        self.exact["dk"][heads] += scale * _over_group(dlogits.mT @ q)
        self.noise["dk"][heads] += scale * _over_group(dlogits_noise.mT @ q.abs())
        # Squares, of which truth() takes the root when all rows are in.
        self.scatter["dk"][heads] += scale**2 * _over_group((dlogits_squared + by_delta.square()).mT @ q.square())
        self.exact["dv"][heads] += _over_group(weights.mT @ dout)
        self.noise["dv"][heads] += _over_group(uncertain.mT @ dout.abs())
        self.scatter["dv"][heads] += _over_group(uncertain_squared.mT @ dout.square())

    def truth(self) -> Truth:
        """Return the sums, with the rounding of the results themselves."""
        group = self.problem.heads // self.problem.kv_heads
        rows = self.problem.q_len * group
        terms = {"dq": self.problem.kv_len, "dk": rows, "dv": rows}
        for name in terms.keys() & self.exact.keys():
            size = self.exact[name].abs()
            self.noise[name] += self.unit * size
            if name != "dq":
                self.scatter[name].sqrt_()
            self.scatter[name] += (self.unit + self.unit32 * _growth(terms[name])) * size
        # No result can be nearer than the dtype's smallest step; nor, where what is below float32's normal numbers is
        # taken as 0, than those: dk and dv of each query head that shares a key head, before they are added up.
        for name in self.exact:
            parts = group if name in ("dk", "dv") else 1
            step = 0.0 if name == "lse" else self.step  # lse is float32 whatever the dtype
            self.noise[name] += max(step, parts * self.finfo32.smallest_normal)
            self.scatter[name] += max(step, math.sqrt(parts) * self.finfo32.smallest_normal)
        by_log_scale = {"out": self.by_log_scale} if self.keys is None else {}
        by_exp = {"out": self.by_exp} if self.keys is None else {}
        return Truth(
            exact=_indexed(self.exact),
            noise=_indexed(self.noise),
            scatter=_indexed(self.scatter),
            by_log_scale=_indexed(by_log_scale),
            by_exp=_indexed(by_exp),
            terms=max(terms.values()),
        )


def _growth(terms: int) -> float:
    """Return by how much the error of a float32 sum of ``terms`` terms exceeds one rounding."""
    return max(1.0, math.sqrt(terms) / 2)


def _indexed(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the results as implementations index them, ``[batch, heads, ...]``."""
    return {name: tensor.flatten(1, 2) for name, tensor in found.items()}


def _hidden(problem: Problem, rows: slice, device: torch.device) -> Tensor | None:
    """Return bool ``[rows, kv_len]``, from the definition of a mask's diagonals; ``None`` where every key is seen."""
    low, high = problem.mask.diagonals(problem.q_len, problem.kv_len)
    if low is None and high is None:
        return None
    query = torch.arange(rows.start, rows.stop, device=device).unsqueeze(1)
    diagonal = torch.arange(problem.kv_len, device=device) - query
    hidden = torch.zeros_like(diagonal, dtype=torch.bool)
    if low is not None:
        hidden |= diagonal < low
    if high is not None:
        hidden |= diagonal > high
    return hidden


def _filled(scores: Tensor, hidden: Tensor | None, value: float) -> Tensor:
    """Put ``value`` where a key is hidden, in place."""
    return scores if hidden is None else scores.masked_fill_(hidden, value)


def _over_group(per_query_head: Tensor) -> Tensor:
    """Sum over the query heads that share a key head."""
    return per_query_head.sum(dim=2, keepdim=True)
