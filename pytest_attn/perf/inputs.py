"""The inputs of a measurement, which several implementations share, and proof that none of them changed them."""

from __future__ import annotations

import torch

from attn_impls.problem import Problem
from pytest_attn.correctness.case import Case, Tensors, make_tensors

_NAMES = ("q", "k", "v", "dout")
_BITS = {2: torch.int16, 4: torch.int32}


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
        """Return the sum of each tensor's elements, read as whole numbers: no intermediate tensor, no rounding."""
        return {name: _checksum(getattr(self.tensors, name)) for name in _NAMES}


def _checksum(tensor: torch.Tensor) -> int:
    return int(tensor.view(_BITS[tensor.element_size()]).sum(dtype=torch.int64))
