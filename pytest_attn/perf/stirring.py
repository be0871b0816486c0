"""Other values for every round of a turn: who remembers results has to work again."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pytest_attn.correctness.case import Tensors
from pytest_attn.perf.timers import Call, Prepare

_MOST_PARTS = 256


class Stirring:
    """Changes the signs of a part of each input before each round, and puts them back after the turn.

    A result that is kept under an address, a version or the values of an input would otherwise serve all rounds, and
    new values for each batch would only make its first round do the work. So every round gets its own, in place: the
    tensors stay where they are, as a captured graph needs, their version is raised, and N(0, 1) stays N(0, 1).

    A part is a stretch of the longest of heads, length and head dimension, in every batch: a 256th where there is so
    much, so that the change takes a few microseconds and wakes no threads, unlike drawing anew or changing all. The
    parts come one after the other through all turns, and each turn ends by putting back what it changed, so that two
    rounds differ in the first or the last part that is changed, until all parts had their turn. Who looks at a few
    values only, and keeps the result under those, is not found out by this.
    """

    def __init__(self, tensors: Tensors) -> None:
        """Take the inputs that all rounds share."""
        self._parts = [_Parts(tensor) for tensor in (tensors.q, tensors.k, tensors.v, tensors.dout)]
        self._begin = self._end = 0

    def rounds(self, prepare: Prepare) -> Callable[[], Call]:
        """Return ``prepare`` with other values before each call, in front of the forward pass it may contain."""

        def stirred() -> Call:
            self.stir()
            return prepare()

        return stirred

    def stir(self) -> None:
        """Change the signs of the next part of each input."""
        for parts in self._parts:
            parts.flip(self._end, self._end + 1)
        self._end += 1

    def put_back(self) -> None:
        """Undo what was changed since the last time, to the bit."""
        for parts in self._parts:
            parts.flip(self._begin, self._end)
        self.forget()

    def forget(self) -> None:
        """Take the inputs as they are now: they were drawn anew."""
        self._begin = self._end


class _Parts:
    """The parts of one tensor, which follow each other along its longest dimension but the batch."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self._dim = max(range(1, tensor.dim()), key=lambda dim: tensor.shape[dim])
        self._length = tensor.shape[self._dim]
        self._count = max(1, min(_MOST_PARTS, self._length))

    def flip(self, begin: int, end: int) -> None:
        """Change the signs of the parts from ``begin`` up to ``end``, counted around, each as often as it comes."""
        around, rest = divmod(end - begin, self._count)
        if around % 2:
            self._tensor.neg_()
        first = begin % self._count
        self._flip(first, min(first + rest, self._count))
        self._flip(0, first + rest - self._count)

    def _flip(self, first: int, last: int) -> None:
        if first < last:
            start, stop = (self._length * part // self._count for part in (first, last))
            self._tensor.narrow(self._dim, start, stop - start).neg_()
