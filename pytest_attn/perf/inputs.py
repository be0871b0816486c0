"""The inputs of a measurement, which several implementations share, and proof that none of them changed them."""

from __future__ import annotations

import torch

from attn_impls.problem import Problem
from pytest_attn.correctness.case import Case, Tensors, make_tensors
from pytest_attn.correctness.slices import SliceStandard
from pytest_attn.correctness.standard import Standard

_NAMES = ("q", "k", "v", "dout")
_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


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

        The word at place ``p`` weighs ``2 p + 1``: odd, so that no bit of it is lost, and values that change places
        change the sum. ``p`` is one number for the sequence plus one for the other dimensions, so that all that is
        weighted is the sums along either, which take no memory to speak of. What keeps both, as a reordering of random
        values does not, goes unseen.
        """
        # Looked at after every turn: few kernels, and one copy from the device.
        sums = [part for name in _NAMES for part in _sums(getattr(self.tensors, name))]
        if self._weights is None:
            pairs = zip(sums[::2], sums[1::2], strict=True)
            self._weights = torch.cat([weights for pair in pairs for weights in _weights(*pair)])
        lengths = [one.numel() + other.numel() for one, other in zip(sums[::2], sums[1::2], strict=True)]
        weighted = (torch.cat(sums) * self._weights).split(lengths)
        return dict(zip(_NAMES, torch.stack([part.sum() for part in weighted]).tolist(), strict=True))


def _sums(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums of the bits of ``[b, h, s, d]``, read as whole numbers, of each ``s`` and of each other place.

    They are read in the widest words of which a row is a multiple. Words of 8 bytes, which there are for every head
    dimension in use, are summed as they are; torch copies narrower ones to 64 bit, which is up to four times the
    tensor, before it adds them.
    """
    row = tensor.shape[-1] * tensor.element_size()
    size = max(size for size in _WORDS if row % size == 0)
    words = tensor.view(_WORDS[size])
    return words.sum(dim=(0, 1, 3), dtype=torch.int64), words.sum(dim=2, dtype=torch.int64).flatten()


def _weights(along: torch.Tensor, across: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the odd weights of the sums along the sequence, and the even ones of the others."""
    length = along.numel()
    odd = 2 * torch.arange(length, device=along.device) + 1
    return odd, 2 * length * torch.arange(across.numel(), device=across.device)
