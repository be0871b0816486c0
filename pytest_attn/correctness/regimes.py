"""Input distributions beyond N(0, 1), each aimed at a way in which attention kernels go wrong.

A regime is a function that changes float32 normal draws in place. The order is from plain to odd, because hypothesis
shrinks towards the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class Draws(NamedTuple):
    """What a regime changes: ``q, dout [b, h, q_len, d]``, ``k, v [b, kv_h, kv_len, d]``, float32."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dout: torch.Tensor
    dtype: torch.dtype  # to which they will be rounded


Regime = Callable[[Draws], None]


def _normal(x: Draws) -> None:
    """Leave N(0, 1) as it is."""


def _tiny(x: Draws) -> None:
    """Shrink all by 2^-10: products fall towards fp16's subnormals, the softmax is almost flat."""
    for tensor in (x.q, x.k, x.v):
        tensor.mul_(2.0**-10)


def _large_logits(x: Draws) -> None:
    """Make logits of about +-50: exp overflows fp32 sums unless the row maximum is subtracted and rescaled."""
    x.q.mul_(4.0)
    x.k.mul_(4.0)


def _outlier_key(x: Draws) -> None:
    """Blow up one late key: the running maximum jumps in the last tile and everything before is rescaled."""
    x.k[:, :, -1:].mul_(16.0)


def _outlier_channel(x: Draws) -> None:
    """Blow up one channel, as trained models have them: low-precision accumulators lose the others."""
    x.k[..., :1].mul_(16.0)
    x.v[..., -1:].mul_(16.0)


def _constant_keys(x: Draws) -> None:
    """Make all keys equal: weights are exactly 1/n, and a key counted twice or dropped shows at once."""
    x.k.copy_(x.k[:, :, :1].clone())


def _cancellation(x: Draws) -> None:
    """Make large values of alternating sign: the sum is small and its terms are not."""
    x.v[:, :, 0::2].add_(8.0)
    x.v[:, :, 1::2].sub_(8.0)


def _one_hot(x: Draws) -> None:
    """Point each query at one key: the output is almost a row of ``v``, so that a shift by one row is glaring."""
    q_len, kv_len = x.q.shape[2], x.k.shape[2]
    length = min(q_len, kv_len)
    group = x.q.shape[1] // x.k.shape[1]
    x.q[:, :, q_len - length :] = 3.0 * x.k[:, :, kv_len - length :].repeat_interleave(group, dim=1)


def _sorted_keys(x: Draws) -> None:
    """Sort keys by size: the maximum grows with every tile, so that every tile rescales."""
    order = x.k.square().sum(dim=-1, keepdim=True).argsort(dim=2).expand_as(x.k)
    x.k.copy_(2.0 * x.k.gather(2, order))


def _early_outlier_key(x: Draws) -> None:
    """Blow up the first key: what the last one is to kernels that visit the keys from the last to the first."""
    x.k[:, :, :1].mul_(16.0)


def _falling_keys(x: Draws) -> None:
    """Sort keys by size, the largest first, for the same kernels."""
    _sorted_keys(x)
    x.k.copy_(x.k.flip(2))


def _limits(x: Draws) -> None:
    """Make values as large as float32 sums of them allow, in fp16 near its 65504: narrower accumulators overflow.

    Their gradient is made as small, so that the products of both stay what they are.
    """
    # The largest N(0, 1) draw is below 8, and 2^12 unnormalised weights may add up before they are divided.
    power = 13 if x.dtype == torch.float16 else 108
    x.v.mul_(2.0**power).clamp_(-7 * 2.0**power, 7 * 2.0**power)
    x.dout.mul_(2.0**-power)


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
    "limits": _limits,
    "early_outlier_key": _early_outlier_key,
    "falling_keys": _falling_keys,
}
