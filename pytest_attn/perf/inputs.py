"""The inputs of a measurement, which several implementations share, and proof that none of them changed them."""

from __future__ import annotations

import torch

from attn_impls.problem import Problem
from pytest_attn.correctness.case import Case, Tensors, make_tensors
from pytest_attn.correctness.slices import SliceStandard
from pytest_attn.correctness.standard import Standard

_NAMES = ("q", "k", "v", "dout")
_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_COLUMNS = 2039


class Inputs:
    """N(0, 1) tensors of one problem, with a checksum of each.

    A checksum instead of a copy: the implementations are to have all of the device's memory.

    Attributes:
        standards: what results on these values are compared with, kept by whoever worked it out: by which part of the
            problem, and whether gradients are in it. Empty after :meth:`renew`; to be emptied, too, after any change
            that a call made to the values or to the settings under which they were worked out.
    """

    def __init__(self, problem: Problem, device: torch.device) -> None:
        """Draw them from the problem's own generator, on ``device``."""
        self._problem = problem
        self._device = device
        self.tensors: Tensors = make_tensors(Case(problem), device, draw_on=device)
        self._weights: torch.Tensor | None = None
        self._sums = self._checksums()
        self.standards: dict[tuple[tuple[int, int], bool, bool], Standard | SliceStandard] = {}

    def changed(self) -> str | None:
        """Return the name of the first tensor whose values are no longer those that were drawn, or ``None``."""
        return next((name for name, total in self._checksums().items() if total != self._sums[name]), None)

    def renew(self, seed: int) -> None:
        """Draw other values, in place: whoever remembers results by address or by value is found out."""
        generator = torch.Generator(self._device).manual_seed(seed)
        for name in _NAMES:
            getattr(self.tensors, name).normal_(generator=generator)
        self.standards.clear()
        self._sums = self._checksums()

    def _checksums(self) -> dict[str, int]:
        """Return of each tensor a sum of its bits, weighted by their place, modulo 2^64.

        The words of the storage lie in rows of 2039, a prime; those of a column are added up, and column ``c`` weighs
        ``2 c + 1``: odd, so that no bit of a word is lost. Values that change places change the sum, unless they are a
        multiple of the prime apart: rows, tiles, heads and batches are not, but at lengths that are such a multiple.
        """
        # Looked at after every turn: few kernels, and one copy from the device.
        if self._weights is None:
            self._weights = 2 * torch.arange(_COLUMNS, device=self._device) + 1
        columns = torch.stack([_columns(getattr(self.tensors, name)) for name in _NAMES])
        return dict(zip(_NAMES, (columns * self._weights).sum(dim=1).tolist(), strict=True))


def _columns(tensor: torch.Tensor) -> torch.Tensor:
    """Return the :data:`_COLUMNS` sums of the words of a tensor without gaps, in the order of its storage.

    The words are the widest of which the tensor is a multiple. Those of 8 bytes are summed as they are; torch copies
    narrower ones to 64 bit, which is up to four times the tensor, before it adds them.
    """
    flat = tensor.as_strided((tensor.numel(),), (1,))
    size = max(size for size in _WORDS if flat.nbytes % size == 0)
    words = flat.view(_WORDS[size])
    whole = words.numel() // _COLUMNS * _COLUMNS
    sums = words[:whole].view(-1, _COLUMNS).sum(dim=0, dtype=torch.int64)
    sums[: words.numel() - whole] += words[whole:]
    return sums
