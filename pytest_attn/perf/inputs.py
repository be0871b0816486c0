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
        self.watch()
        self.standards: dict[tuple[tuple[int, int], bool, bool], Standard | SliceStandard] = {}

    def watch(self) -> None:
        """Take the tensors as they are now for what they ought to stay."""
        self._watched = {name: _Watched(getattr(self.tensors, name)) for name in _NAMES}
        self._sums = self._checksums()

    def changed(self) -> str | None:
        """Return the name of the first tensor whose values or form are no longer those drawn, or ``None``."""
        for name, watched in self._watched.items():
            if watched.form != _form(
                getattr(self.tensors, name)
            ):  # transpose_() moves no word, set_() leaves all behind
                return name
        differ = (self._checksums() != self._sums).any(dim=1).tolist()
        return next((name for name, differs in zip(_NAMES, differ, strict=True) if differs), None)

    def renew(self, seed: int) -> None:
        """Draw other values, in place: whoever remembers results by address or by value is found out."""
        generator = torch.Generator(self._device).manual_seed(seed)
        for name, watched in self._watched.items():
            tensor = getattr(self.tensors, name)
            watched.restore(tensor)
            tensor.normal_(generator=generator)
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
        sums = torch.empty(len(_NAMES), _COLUMNS, dtype=torch.int64, device=self._device)
        for watched, row in zip(self._watched.values(), sums, strict=True):
            watched.sum(row)
        return sums


class _Watched:
    """One input: its form, and its words in rows of :data:`_COLUMNS`, in the order of a storage without gaps.

    The words are the widest of which the tensor is a multiple. Those of 8 bytes are summed as they are; torch copies
    narrower ones to 64 bit, which is up to four times the tensor, before it adds them.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.form = _form(tensor)
        self._kept = tensor.detach()  # another tensor of the same storage, which set_() on the first one leaves alone
        flat = tensor.as_strided((tensor.numel(),), (1,))
        size = max(size for size in _WORDS if flat.nbytes % size == 0)
        words = flat.view(_WORDS[size])
        whole = words.numel() // _COLUMNS * _COLUMNS
        self._rows, self._rest = words[:whole].view(-1, _COLUMNS), words[whole:]

    def sum(self, into: torch.Tensor) -> None:
        """Write the sums of the columns."""
        torch.sum(self._rows, dim=0, dtype=torch.int64, out=into)
        into[: self._rest.numel()].add_(self._rest)

    def restore(self, tensor: torch.Tensor) -> None:
        """Give ``tensor`` its storage and its form back."""
        if _form(tensor) != self.form:
            tensor.set_(self._kept)  # type: ignore[call-overload]


def _form(tensor: torch.Tensor) -> tuple[int, torch.Size, tuple[int, ...]]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()
