"""Grids: named lists of problems; :mod:`attn_impls.grid_file` reads grids of one's own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from attn_impls.grid_file import UnknownGrid as UnknownGrid
from attn_impls.grid_file import read_grid
from attn_impls.models import MODELS
from attn_impls.problem import CAUSAL, FULL, Mask, Problem


def _square(
    batch: int, heads: int, seq: int, head_dim: int, dtype: str, mask: Mask, kv_heads: int | None = None
) -> Problem:
    return Problem(batch, heads, kv_heads or heads, seq, seq, head_dim, dtype, mask)


def _smoke() -> list[Problem]:
    """Return small sweeps over sequence length, batch, heads and embedding for two CPU cores, fp32."""
    sweeps = [
        *({"seq": seq} for seq in (128, 256, 512)),
        *({"batch": batch} for batch in (1, 2, 4)),
        *({"heads": heads} for heads in (2, 4, 8)),
        *({"head_dim": head_dim} for head_dim in (32, 64, 128)),
    ]
    base = {"batch": 1, "heads": 4, "seq": 128, "head_dim": 64}
    return _unique(_square(dtype="fp32", mask=mask, **(base | sweep)) for sweep in sweeps for mask in (FULL, CAUSAL))


def _lab5_problem(batch: int, seq: int, heads: int, embedding: int, mask: Mask) -> Problem | None:
    # The course script's head_dim is emb / heads; a pair that does not divide is no problem at all.
    return None if embedding % heads else _square(batch, heads, seq, embedding // heads, "fp16", mask)


def _lab5() -> list[Problem]:
    """Return the course script's sweep: batch 16, 32, 64 x seq 512, 1024 x heads 16, 32 x emb 1024, 2048, fp16."""
    axes = itertools.product((16, 32, 64), (512, 1024), (16, 32), (1024, 2048), (FULL, CAUSAL))
    return _unique(_lab5_problem(*point) for point in axes)


def _lab5_seq() -> list[Problem]:
    """Return the third report's sweep over sequence length: batch 16, heads 32, emb 256."""
    axes = itertools.product((128, 256, 512, 1024, 2048, 4096), (FULL, CAUSAL))
    return _unique(_lab5_problem(16, seq, 32, 256, mask) for seq, mask in axes)


def _lab5_heads() -> list[Problem]:
    """Return the third report's sweep over heads: batch 16, seq 1024, emb 256."""
    axes = itertools.product((2, 4, 8, 16, 32), (FULL, CAUSAL))
    return _unique(_lab5_problem(16, 1024, heads, 256, mask) for heads, mask in axes)


def _lab5_emb() -> list[Problem]:
    """Return the third report's sweep over embedding: batch 16, seq 1024, heads 32."""
    axes = itertools.product((256, 512, 1024, 2048, 4096), (FULL, CAUSAL))
    return _unique(_lab5_problem(16, 1024, 32, embedding, mask) for embedding, mask in axes)


def _hw4() -> list[Problem]:
    """Return the ladder's sizes: (B, N, d) of one head in fp32, up to 4, 16384, 64."""
    sizes = ((4, 256, 64), (4, 1024, 64), (4, 4096, 64), (4, 16384, 64))
    return [_square(batch, 1, seq, head_dim, "fp32", FULL) for batch, seq, head_dim in sizes]


def _fa_paper() -> list[Problem]:
    """Return FlashAttention's published sweep: batch * seq = 16k tokens, heads * head_dim = 2048, bf16.

    Source: Shah et al. 2024, arXiv:2407.08608, section 4.1.
    """
    axes = itertools.product((64, 128, 256), (FULL, CAUSAL), (512, 1024, 2048, 4096, 8192, 16384))
    return [_square(16384 // seq, 2048 // d, seq, d, "bf16", mask) for d, mask, seq in axes]


def _models() -> list[Problem]:
    """Return grouped-query shapes of published models, prefill and decode, bf16.

    Prefill is one prompt; decode is one new token for each of ``batch`` sequences with 8192 keys. Models of one
    shape give one problem.
    """
    layers = [layer for model in MODELS for layer in model.layers()]
    prefill = (layer.problem(batch=1, q_len=seq, kv_len=seq) for layer in layers for seq in (2048, 8192))
    decode = (layer.problem(batch=batch, q_len=1, kv_len=8192) for layer in layers for batch in (1, 16, 64))
    return _unique([*prefill, *decode])


GRIDS: dict[str, Callable[[], list[Problem]]] = {
    "smoke": _smoke,
    "lab5": _lab5,
    "lab5-seq": _lab5_seq,
    "lab5-heads": _lab5_heads,
    "lab5-emb": _lab5_emb,
    "hw4": _hw4,
    "fa-paper": _fa_paper,
    "models": _models,
}


def load_grid(name: str) -> list[Problem]:
    """Return the problems of the named grid, or of the TOML file ``name``.

    Raises :class:`~attn_impls.grid_file.UnknownGrid` for a name that is no grid and a file that
    :func:`~attn_impls.grid_file.read_grid` refuses.
    """
    if name in GRIDS:
        return GRIDS[name]()
    if not name.endswith(".toml"):
        raise UnknownGrid(f"unknown grid {name!r}; known: {', '.join(GRIDS)}, or a FILE.toml")
    return read_grid(name)


def _unique(problems: Iterable[Problem | None]) -> list[Problem]:
    return list({problem.id: problem for problem in problems if problem is not None}.values())
