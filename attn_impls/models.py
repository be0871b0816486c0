"""Attention of published models: the shapes that the grid ``models`` is made of.

Each number is the one in the model's published configuration (``config.json``). What a :class:`Problem` cannot say is
left out: rotary embeddings, GPT-OSS's learned attention sinks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attn_impls.problem import CAUSAL, Mask, Problem


@dataclass(frozen=True, slots=True)
class Layer:
    """The attention of one kind of layer: all of a :class:`Problem` but batch and lengths."""

    heads: int
    kv_heads: int
    head_dim: int
    mask: Mask
    softcap: float | None
    scale: float | None

    def problem(self, batch: int, q_len: int, kv_len: int) -> Problem:
        """Return the problem of ``batch`` sequences, in bf16."""
        return Problem(
            batch,
            self.heads,
            self.kv_heads,
            q_len,
            kv_len,
            self.head_dim,
            "bf16",
            self.mask,
            softcap=self.softcap,
            scale=self.scale,
        )


@dataclass(frozen=True, slots=True)
class Model:
    """A model's attention, in the words of its configuration.

    Attributes:
        window: keys that a query of a sliding-window layer sees, itself included; ``None`` without such layers.
        full: whether some layers see all earlier keys.
        softcap: ``attn_logit_softcapping``.
        scale: the factor on the logits where it is not ``1 / sqrt(head_dim)``.
    """

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    full: bool = True
    softcap: float | None = None
    scale: float | None = None

    def layers(self) -> Iterator[Layer]:
        """Yield the model's kinds of layers, sliding window first."""
        masks = [] if self.window is None else [Mask("window", self.window - 1, 0)]
        for mask in [*masks, CAUSAL] if self.full else masks:
            yield Layer(self.heads, self.kv_heads, self.head_dim, mask, self.softcap, self.scale)


MODELS = (
    Model("Llama-3 8B", 32, 8, 128),
    Model("Llama-3 70B", 64, 8, 128),
    Model("Qwen3 32B", 64, 8, 128),
    Model("Qwen3 30B-A3B", 32, 4, 128),
    # Later versions of Mistral 7B, and Mixtral, have no window.
    Model("Mistral 7B v0.1", 32, 8, 128, window=4096, full=False),
    Model("Mixtral 8x7B", 32, 8, 128),
    Model("GPT-OSS 20B", 64, 8, 64, window=128),
    Model("GPT-OSS 120B", 64, 8, 64, window=128),
    # Its logits are divided by sqrt(query_pre_attn_scalar), which is hidden_size / heads and not head_dim.
    Model("Gemma-2 27B", 32, 16, 128, window=4096, softcap=50.0, scale=144**-0.5),
)
