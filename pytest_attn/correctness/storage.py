"""How the inputs lie in memory: forms that a view of a larger tensor takes, all with head_dim stride 1.

An implementation sees the same values in each. What lies around and between them is NaN, so that reading one element
too many shows in the result. The form is one more thing that a seed decides: ``seed % 7``, so that forms meet every
regime, and shrinking, which makes seeds small, ends at the plainest one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

Tensor = torch.Tensor
_ROUND_TO = 8  # elements: rows stay aligned to 16 bytes where the head dimension is a multiple of it


def storage_of(seed: int) -> str:
    """Return the name of the form that a seed stands for."""
    return STORAGES[seed % len(STORAGES)]


def store(name: str, layout: str, q: Tensor, k: Tensor, v: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
    """Return ``q, k, v, dout``, each ``[batch, heads, seq, head_dim]``, stored in the form ``name``.

    ``layout`` is the order in memory, ``"bshd"`` or ``"bhsd"``.
    """
    ordered = [t.transpose(1, 2) if layout == "bshd" else t for t in (q, k, v, dout)]
    stored = _FORMS[name](ordered, 2 if layout == "bshd" else 1)
    return tuple(t.transpose(1, 2) for t in stored) if layout == "bshd" else tuple(stored)


def placed(tensor: Tensor, layout: str) -> Tensor:
    """Return a copy of ``tensor [batch, heads, seq, head_dim]`` that lies densely in the order ``layout``.

    Neither ``contiguous()`` nor ``clone()`` nor arithmetic does: where a dimension has one element they leave it
    whatever stride falls out, and some implementations refuse a head_dim whose stride is not 1.
    """
    source = tensor.transpose(1, 2) if layout == "bshd" else tensor
    copy = source.new_empty(source.shape).copy_(source)
    return copy.transpose(1, 2) if layout == "bshd" else copy


def _dense(tensors: Sequence[Tensor], heads: int) -> list[Tensor]:
    """Store each on its own."""
    return [placed(tensor, "bhsd") for tensor in tensors]


def _cut_out(tensors: Sequence[Tensor], heads: int) -> list[Tensor]:
    """Cut each out of the middle of one with more batches, heads and positions."""
    return [_inside(tensor, before=(1, 1, 1, 0), after=(1, 1, 2, 0)) for tensor in tensors]


def _wide_rows(tensors: Sequence[Tensor], heads: int) -> list[Tensor]:
    """Cut each out of one with a larger head dimension."""
    padding = -tensors[0].shape[-1] % _ROUND_TO + _ROUND_TO
    return [_inside(tensor, before=(0, 0, 0, 0), after=(0, 0, 0, padding)) for tensor in tensors]


def _packed(tensors: Sequence[Tensor], heads: int) -> list[Tensor]:
    """Put k and v, and q where it is as long, side by side along the heads, as one projection writes them."""
    q, k, v, dout = tensors
    together = [k, v] if q.shape[3 - heads] != k.shape[3 - heads] else [q, k, v]
    joint = torch.cat(together, dim=heads).split([tensor.shape[heads] for tensor in together], dim=heads)
    own_q = [placed(q, "bhsd")] if len(joint) == 2 else []
    return [*own_q, *joint, placed(dout, "bhsd")]


def _mixed(turn: int) -> Callable[[Sequence[Tensor], int], list[Tensor]]:
    """Store each in another form than its neighbours: no two of q, k and v have the same strides."""
    forms = (_dense, _cut_out, _wide_rows)

    def mixed(tensors: Sequence[Tensor], heads: int) -> list[Tensor]:
        return [forms[(turn + place) % len(forms)]([tensor], heads)[0] for place, tensor in enumerate(tensors)]

    return mixed


def _inside(tensor: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Return a view of a larger tensor full of NaN that holds the values of ``tensor``."""
    shape = [sum(sizes) for sizes in zip(before, tensor.shape, after, strict=True)]
    view = tensor.new_full(shape, math.nan)
    for dim, start in enumerate(before):
        view = view.narrow(dim, start, tensor.shape[dim])
    return view.copy_(tensor)


_FORMS: dict[str, Callable[[Sequence[Tensor], int], list[Tensor]]] = {
    "dense": _dense,
    "cut_out": _cut_out,
    "wide_rows": _wide_rows,
    "packed": _packed,
    "mixed_1": _mixed(0),
    "mixed_2": _mixed(1),
    "mixed_3": _mixed(2),
}
STORAGES = tuple(_FORMS)
