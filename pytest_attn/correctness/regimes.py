"""Input distributions beyond N(0, 1), each aimed at a way in which attention kernels go wrong.

A regime is a function that changes float32 normal draws ``q [b, h, q_len, d]``, ``k`` and ``v [b, kv_h, kv_len, d]`` in
place. The order is from plain to odd, because hypothesis shrinks towards the first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Regime = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def _normal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Leave N(0, 1) as it is."""


def _tiny(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Shrink all by 2^-10: products fall towards fp16's subnormals, the softmax is almost flat."""
    for tensor in (q, k, v):
        tensor *= 2.0**-10


def _large_logits(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Make logits of about +-50: exp overflows fp32 sums unless the row maximum is subtracted and rescaled."""
    q *= 4.0
    k *= 4.0


def _outlier_key(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Blow up one late key: the running maximum jumps in the last tile and everything before is rescaled."""
    k[:, :, -1:] *= 16.0


def _outlier_channel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Blow up one channel, as trained models have them: low-precision accumulators lose the others."""
    k[..., :1] *= 16.0
    v[..., -1:] *= 16.0


def _constant_keys(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Make all keys equal: weights are exactly 1/n, and a key counted twice or dropped shows at once."""
    k[:] = k[:, :, :1].clone()


def _cancellation(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Make large values of alternating sign: the sum is small and its terms are not."""
    v[:, :, 0::2] += 8.0
    v[:, :, 1::2] -= 8.0


def _one_hot(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Point each query at one key: the output is almost a row of ``v``, so that a shift by one row is glaring."""
    length = min(q.shape[2], k.shape[2])
    group = q.shape[1] // k.shape[1]
    q[:, :, q.shape[2] - length :] = 3.0 * k[:, :, k.shape[2] - length :].repeat_interleave(group, dim=1)


def _sorted_keys(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Sort keys by size: the maximum grows with every tile, so that every tile rescales."""
    order = k.square().sum(dim=-1, keepdim=True).argsort(dim=2).expand_as(k)
    k[:] = 2.0 * k.gather(2, order)


REGIMES: dict[str, Regime] = {
    "normal": _normal,
    "tiny": _tiny,
    "large_logits": _large_logits,
    "outlier_key": _outlier_key,
    "outlier_channel": _outlier_channel,
    "constant_keys": _constant_keys,
    "cancellation": _cancellation,
    "one_hot": _one_hot,
    "sorted_keys": _sorted_keys,
}
