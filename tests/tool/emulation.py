"""Registers the operators of CUDA sources that run emulated."""

from __future__ import annotations

from pathlib import Path


def register_on_the_cpu(header: Path) -> None:
    """Let a copy of ``register_forward.h`` register ``attn_tiled::emulated_<name>`` on CPU tensors."""
    text = header.read_text()
    for old, new in (("(attn_tiled, CUDA,", "(attn_tiled, CPU,"), ("(#NAME", '("emulated_" #NAME')):
        assert old in text
        text = text.replace(old, new)
    header.write_text(text)
