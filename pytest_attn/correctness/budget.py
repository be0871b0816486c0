"""The error budget: how far an implementation may be from the truth. The rule stands here and nowhere else.

For each tensor (``out``, ``lse``, ``dq``, ``dk``, ``dv``) with float64 truth ``t``, result ``x`` and, as ``n``, the
result of ``naive`` in the same dtype on the same inputs, ``x`` is finite wherever ``t`` is, and::

    element   |x - t|           <=  2 max|n - t|                      +  4 noise
    rms       rms(x - t)        <=  2 rms(n - t)                      +  4 rms(noise)
    row       rms_i(x - t)      <=  2 max_r(rms_r(n - t) / rms_r(scatter)) rms_i(scatter)  +  4 rms_i(scatter)
    gain      |<x - t, g>|/<g, g>  <=  2 |<n - t, g>|/<g, g>  +  4 deviation  +  shared  +  exp,      g = t
    scale     the same with g = d t / d log(softmax scale), for out

*Element* is flash-attention's rule: no worse than twice plain PyTorch in the same precision (Dao-AILab/flash-attention,
``tests/test_flash_attn.py``). Alone it fails good kernels where ``naive`` happens to be exact (one key, equal keys) and
its error is 0. The second term covers that: ``noise`` is the rounding error that the element cannot avoid, one rounding
of each intermediate to the dtype and float32 accumulation (see :mod:`pytest_attn.correctness.oracle`), so it is a few
ulp *of that element's terms*, not of the largest element. What fast kernels do is part of it: float32 below its normal
numbers is taken as 0, and under a softcap the tanh of kernels for 16-bit numbers is right to 2^-11 only, and gradients
of logits are rounded times scale / softcap.

*Row* keeps one wrong row of a long sequence from hiding: late rows average many keys and are small beside the first
ones, and so is what rounding does to them (``scatter``, independent roundings). ``naive``'s worst row, in units of its
own scatter, says by how much plain PyTorch exceeds that.

*Gain* and *scale* find what all elements share. The projection of the error on ``g`` is its regression on ``g``: an
output that is 1 % too large gives 0.01 for ``g = t``, and a softmax scale that is 1 % too large gives 0.01 for
``g = d t / d log(scale)``, while roundings average out: with row ``i``'s error ``e_i``, the rows independent and the
elements of one row not, ``deviation = sqrt(sum_i <n_i - t_i, g_i>^2 + (sum_c scatter_ic |g_ic|)^2) / <g, g>``, of which
the first sum is the cluster-robust variance of a regression (Liang and Zeger 1986, doi:10.1093/biomet/73.1.13) and the
second what rounding must be allowed. ``shared = unit + 4 sqrt(terms) unit32``, with the unit roundoffs of the dtype and
of float32, is for roundings that all rows share: that of a constant, of equal weights, of a float32 sum of ``terms``
almost equal terms. In bf16 it is 0.4 %, so that 1 % shows wherever enough rows are averaged. ``exp``, of ``out`` alone,
is ``|<e, g>| / <g, g>``, where ``e`` is what ``out`` moves by if every exponential but that of the row's largest logit,
which is exact, is off by exp's own error of 4 unit32 alike. CUDA's ex2.approx may be (2^-22, PTX ISA), which looks like
another softmax scale where logits differ by 1e-6: by 5 % in PyTorch's memory-efficient kernel on an H100. Elsewhere it
is next to nothing. Where ``|g| < 4 scatter``, ``g`` is taken as 0: what is below an element's own rounding decides
which way it rounds, and such errors do not average out. Nor do those of a gradient's sum over tiles that is kept in the
dtype, as PyTorch's flash backward on a CPU keeps it: what a tile adds is lost below half the dtype's smallest step, in
all elements alike. A gradient may be short of ``sqrt(tiles / 12) step`` everywhere for it, which is a rounding for each
tile of 32 terms, and nothing but in fp16.

In fp16 and bf16 ``naive`` rounds its scores too, which ``noise`` leaves out, as no fused kernel does it; and in a small
problem its error is a matter of luck. So there ``n`` is what gives the largest bound of four ways to write the
same plain PyTorch: the softmax scale applied to the scores, to ``q`` (as timm's attention does), to ``k`` (as the
reference of flash-attention's tests may), or its root to both (as PyTorch's math backend does).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pytest_attn.correctness.oracle import Truth

RULES = ("element", "rms", "row", "gain", "scale")
NAIVE_FACTOR = 2.0
FLOOR = 4.0
_TILE = 32  # terms; the fewest that a kernel sums up before it rounds


@dataclass(frozen=True, slots=True)
class TensorVerdict:
    """How one tensor did. Each ratio is error over budget where that is largest, so that <= 1 passes.

    Attributes:
        name: of the tensor.
        ratio: by element; ``index`` is where, ``got`` and ``want`` the values there, ``error`` their distance and
            ``budget`` the bound.
        rms_ratio: by the root mean square of all.
        row_ratio: by the root mean square of a row of ``head_dim`` elements; ``row`` is where.
        gain: relative error of the size of the whole, within ``gain_budget`` either way.
        scale: relative error of the softmax scale, as far as the output shows it, within ``scale_budget``.
        nonfinite: how many values are not finite but should be.
    """

    name: str
    ratio: float = 0.0
    rms_ratio: float = 0.0
    row_ratio: float = 0.0
    gain_ratio: float = 0.0
    scale_ratio: float = 0.0
    index: tuple[int, ...] = ()
    row: tuple[int, ...] = ()
    got: float = math.nan
    want: float = math.nan
    error: float = 0.0
    budget: float = 0.0
    nonfinite: int = 0
    gain: float = 0.0
    gain_budget: float = 0.0
    scale: float = 0.0
    scale_budget: float = 0.0

    @property
    def ratios(self) -> dict[str, float]:
        """Every error over its budget, by the name of its rule."""
        values = (self.ratio, self.rms_ratio, self.row_ratio, self.gain_ratio, self.scale_ratio)
        return dict(zip(RULES, values, strict=True))

    @property
    def worst(self) -> float:
        """The largest of all ratios."""
        return max(self.ratios.values())

    @property
    def ok(self) -> bool:
        """Whether the tensor keeps within the budget."""
        return self.nonfinite == 0 and self.worst <= 1


@dataclass(frozen=True, slots=True, eq=False)
class _Shared:
    """An error that all elements share: in which direction, over what, and how large it may be."""

    direction: torch.Tensor
    size: float
    budget: float


class TensorBudget:
    """What any result of one name may be off by: worked out once, for as many results as are judged."""

    def __init__(self, quantity: str, naive: Sequence[torch.Tensor], truth: Truth) -> None:
        """Take what the results of ``naive``, of the shape of ``truth.exact[quantity]`` and of one dtype, earn."""
        self._exact, noise, scatter = truth.exact[quantity], truth.noise[quantity], truth.scatter[quantity]
        self._rowless = quantity == "lse"  # it has no elements within its row
        if self._exact.numel() == 0:
            return
        errors = torch.stack([self._error(each.detach().double()) for each in naive]).nan_to_num_(0.0, 0.0, 0.0)
        self._bound = element_bound(errors, noise)
        self._rms_budget = NAIVE_FACTOR * max(_rms(error) for error in errors) + FLOOR * _rms(noise)
        by_row, scatter_by_row = (self._by_row(tensor).sqrt() for tensor in (errors, scatter))
        self._row_bound = scatter_by_row * (NAIVE_FACTOR * (by_row / scatter_by_row).max() + FLOOR)
        finfo = torch.finfo(naive[0].dtype)
        shared = (finfo.eps + FLOOR * math.sqrt(truth.terms) * torch.finfo(torch.float32).eps) / 2
        tiles = math.ceil(truth.terms / _TILE) if quantity in ("dq", "dk", "dv") else 0
        lost = math.sqrt(tiles / 12) * finfo.smallest_normal * finfo.eps
        directions = (None if self._rowless else self._exact, truth.by_log_scale.get(quantity))
        by_exp = truth.by_exp.get(quantity)
        self._gain, self._scale = (_shared_error(errors, scatter, each, by_exp, shared, lost) for each in directions)

    def judge(self, name: str, got: torch.Tensor) -> TensorVerdict:
        """Compare ``got`` with the truth; ``name`` is for the verdict."""
        if self._exact.numel() == 0:
            return TensorVerdict(name)
        got = got.detach().double()
        error = self._error(got)
        bad = ~error.isfinite()
        ratio = (error.abs() / self._bound).masked_fill(bad, math.inf).flatten()
        squares = self._by_row(error)
        bad_rows = bad if self._rowless else bad.any(dim=-1)
        row_ratio = (squares.sqrt() / self._row_bound).masked_fill(bad_rows, math.inf).flatten()
        worst, worst_row = ratio.argmax(), row_ratio.argmax()
        zero = torch.zeros((), dtype=torch.float64, device=error.device)
        # One copy from the device for all of them; a float64 holds every index.
        numbers = [
            *(worst, worst_row, bad.sum(), ratio.take(worst), row_ratio.take(worst_row), squares.mean().sqrt()),
            *(tensor.take(worst) for tensor in (got, self._exact, error, self._bound)),
            *(zero if each is None else (error * each.direction).sum() for each in (self._gain, self._scale)),
        ]
        place, row, nonfinite, *values = torch.stack([number.double() for number in numbers]).tolist()
        element, by_row, rms, found, want, off, budget, along_gain, along_scale = values
        (gain, gain_budget), (scale, scale_budget) = (
            (0.0, 0.0) if each is None else (along / each.size, each.budget)
            for each, along in ((self._gain, along_gain), (self._scale, along_scale))
        )
        return TensorVerdict(
            name,
            ratio=element,
            rms_ratio=_over(rms, self._rms_budget),
            row_ratio=by_row,
            gain_ratio=_over(abs(gain), gain_budget),
            scale_ratio=_over(abs(scale), scale_budget),
            index=unravelled(int(place), error.shape),
            row=unravelled(int(row), squares.shape),
            got=found,
            want=want,
            error=abs(off),
            budget=budget,
            nonfinite=int(nonfinite),
            gain=gain,
            gain_budget=gain_budget,
            scale=scale,
            scale_budget=scale_budget,
        )

    def _error(self, got: torch.Tensor) -> torch.Tensor:
        if not self._rowless:
            return got - self._exact
        # Where the truth is -inf (the LSE of a row without keys) only equality counts.
        equal = torch.where(got == self._exact, 0.0, math.nan)
        return torch.where(self._exact.isfinite(), got - self._exact, equal)

    def _by_row(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return mean squares of the rows, ``[batch, heads, rows]``."""
        return tensor.square() if self._rowless else tensor.square().mean(dim=-1)


def element_bound(errors: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the bounds by *element*, of the shape of ``noise``; ``errors`` are finite, of any number of results."""
    worst = errors.abs().max() if errors.numel() else 0.0
    return NAIVE_FACTOR * worst + FLOOR * noise


def unravelled(flat: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the index of the ``flat``-th element of a tensor of ``shape``, counted along its rows."""
    # torch.unravel_index would import sympy, which takes a process most of a second.
    index = []
    for size in reversed(shape):
        flat, place = divmod(flat, size)
        index.append(place)
    return tuple(reversed(index))


def _shared_error(
    errors: torch.Tensor,
    scatter: torch.Tensor,
    direction: torch.Tensor | None,
    by_exp: torch.Tensor | None,
    shared: float,
    lost: float,
) -> _Shared | None:
    """Return how far an error may go along ``direction`` by naive's ``errors``; ``None`` without one."""
    if direction is None:
        return None
    direction = direction.masked_fill(direction.abs() < FLOOR * scatter, 0.0)
    rows, expected = (errors * direction).sum(dim=-1), (scatter * direction.abs()).sum(dim=-1)
    rows = rows.reshape(len(errors), -1)
    along, deviation = rows.sum(dim=1).abs(), (rows.square().sum(dim=1) + expected.square().sum()).sqrt()
    bound = (NAIVE_FACTOR * along + FLOOR * deviation).max() + lost * direction.abs().sum()
    if by_exp is not None:
        bound = bound + (by_exp * direction).sum().abs()
    size, bound = torch.stack([direction.square().sum(), bound]).tolist()
    return _Shared(direction, size, bound / size + shared) if size else None


def _over(value: float, budget: float) -> float:
    """Return ``value / budget``; infinite for what is not a number."""
    if value == 0:
        return 0.0
    return value / budget if math.isfinite(value) else math.inf


def _rms(tensor: torch.Tensor) -> float:
    return float(tensor.square().mean().sqrt())
