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

    A checksum instead of a copy: the implementations are to have the device's memory.

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
        self._forms = {name: _form(getattr(self.tensors, name)) for name in _NAMES}
        self._sums = self._checksums()
        self.standards: dict[tuple[tuple[int, int], bool, bool], Standard | SliceStandard] = {}

    def changed(self) -> str | None:
        """Return the name of the first tensor whose values or form are no longer those drawn, or ``None``."""
        for name, form in self._forms.items():
            if _form(getattr(self.tensors, name)) != form:  # transpose_() moves no word
                return name
        differ = (self._checksums() != self._sums).any(dim=1).tolist()
        return next((name for name, differs in zip(_NAMES, differ, strict=True) if differs), None)

    def renew(self, seed: int) -> None:
        """Draw other values, in place: whoever remembers results by address or by value is found out."""
        generator = torch.Generator(self._device).manual_seed(seed)
        for name, form in self._forms.items():
            getattr(self.tensors, name).as_strided_(*form).normal_(generator=generator)
        self.standards.clear()
        self._sums = self._checksums()

    def _checksums(self) -> torch.Tensor:
        """Return of each tensor 2039 sums of its bits, modulo 2^64, as ``[4, 2039]``, on the tensors' device.

        The words of the storage lie in rows of 2039, a prime, and those of a column are added up. The columns are not
        added to each other: that would leave of the highest bit of all words nothing but whether it is set an even
        number of times. Values that change places change sums, unless they are a multiple of the prime apart: rows,
        tiles, heads and batches are not, but at lengths that are such a multiple.
        """
        # Looked at after every turn: few kernels, and one copy from the device.
        return torch.stack([_columns(getattr(self.tensors, name)) for name in _NAMES])


def _form(tensor: torch.Tensor) -> tuple[torch.Size, tuple[int, ...]]:
    return tensor.shape, tensor.stride()


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
