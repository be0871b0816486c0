"""The inputs of a measurement, which several implementations share, and proof that none of them changed them."""

from __future__ import annotations

import torch

from attn_impls.problem import Problem
from pytest_attn.correctness.case import Case, Tensors, make_tensors

_NAMES = ("q", "k", "v", "dout")
_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


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
        """Return the sum of each tensor's bits, read as whole numbers: no rounding."""
        return {name: _checksum(getattr(self.tensors, name)) for name in _NAMES}


def _checksum(tensor: torch.Tensor) -> int:
    """Return the sum modulo 2^64, read in the widest words of which a row is a whole number.

    Of 8 bytes they are for every head dimension in use, and summed as they are; torch copies narrower ones to 64 bit,
    which is up to four times the tensor, before it adds them.
    """
    row = tensor.shape[-1] * tensor.element_size()
    size = max(size for size in _WORDS if row % size == 0)
    return int(tensor.view(_WORDS[size]).sum(dtype=torch.int64))
