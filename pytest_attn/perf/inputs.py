"""The inputs of a measurement, which several implementations share, and proof that none of them changed them."""

from __future__ import annotations

import torch

from attn_impls.problem import Problem
from pytest_attn.correctness.case import Case, Tensors, make_tensors

_NAMES = ("q", "k", "v", "dout")
_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Odd, one for each dimension: without them a word at (1, 2) would weigh what one at (2, 1) does.
_MULTIPLIERS = (0x9E3779B97F4A7C1, 0x2545F4914F6CDD1D, 0x5851F42D4C957F2D, 0x369DEA0F31A53F85)


class Inputs:
    """N(0, 1) tensors of one problem, with a checksum of each.

    A checksum instead of a copy: the implementations are to have all of the device's memory.
    """

    def __init__(self, problem: Problem, device: torch.device) -> None:
        """Draw them from the problem's own generator, on ``device``."""
        self._problem = problem
        self._device = device
        self.tensors: Tensors = make_tensors(Case(problem), device, draw_on=device)
        self._sums = self._checksums()

    def changed(self) -> str | None:
        """Return the name of the first tensor whose values are no longer those that were drawn, or ``None``."""
        return next((name for name, total in self._checksums().items() if total != self._sums[name]), None)

    def renew(self, seed: int) -> None:
        """Draw other values, in place: whoever remembers results by address or by value is found out."""
        generator = torch.Generator(self._device).manual_seed(seed)
        for name in _NAMES:
            getattr(self.tensors, name).normal_(generator=generator)
        self._sums = self._checksums()

    def _checksums(self) -> dict[str, int]:
        sums = torch.stack([_checksum(getattr(self.tensors, name)) for name in _NAMES])
        return dict(zip(_NAMES, sums.tolist(), strict=True))  # one copy from the device


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sum of the tensor's bits weighted by their place, modulo 2^64: a 0-dimensional int64.

    The bits are read as whole numbers, in the widest words of which a row is a multiple. The word at ``(i, j, ...)``
    weighs ``a_i + b_j + ...``, so that values that change places change the sum, and all that is weighted is the sums
    along each dimension, which take no memory to speak of. Only the first dimension's weights are odd: so is each
    word's, and no bit of it is lost. What keeps the sums along each dimension, as a reordering of random values does
    not, goes unseen.

    Words of 8 bytes, which there are for every head dimension in use, are summed as they are; torch copies narrower
    ones to 64 bit, which is up to four times the tensor, before it adds them.
    """
    row = tensor.shape[-1] * tensor.element_size()
    size = max(size for size in _WORDS if row % size == 0)
    words = tensor.view(_WORDS[size])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for dim, multiplier in enumerate(_MULTIPLIERS[: words.dim()]):
        others = [other for other in range(words.dim()) if other != dim]
        sums = words.sum(dim=others, dtype=torch.int64)
        weights = multiplier * (2 * torch.arange(sums.numel(), device=tensor.device) + (dim == 0))
        total += (sums * weights).sum()
    return total
