"""Hypothesis strategies that draw cases inside an implementation's capabilities.

A case is drawn, never a tensor element: a seed and a regime say as much as a million floats, cost nothing to generate
and shrink to something readable. Lengths are biased towards the edges of tiles, where kernels break.

What a draw asks for is made once and kept: hypothesis looks through every new strategy, which took 4 ms an example,
where a small case takes 5 to judge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from attn_impls.implementation import Capabilities
from attn_impls.problem import CAUSAL, Direction, Mask, Problem
from pytest_attn.correctness.case import Case
from pytest_attn.correctness.regimes import REGIMES

T = TypeVar("T")

# Lengths around the edges of tiles in use, simplest first for shrinking; those of the commonest tiles come oftener.
_COMMON_TILES, _OTHER_TILES = (16, 32, 64, 128, 256), (80, 96, 112, 176, 192)
_EDGES = (1, 2, 3, *(tile + step for tile in _COMMON_TILES for step in (-1, 0, 1)))
_OTHER_EDGES = tuple(tile + step for tile in _OTHER_TILES for step in (-1, 0, 1))
_LONGEST = 320
# A few queries on many keys, or many queries on a few keys.
_LONG = (511, 512, 513, 1000, 1024, 1025, 2047, 2048, 2049, 4096, 5000)
_SHORT = (2, 1, 5, 16, 17, 33)
_HEAD_DIMS = (16, 32, 64, 128, 64, 128, 8, 40, 96, 256, 1, 3, 5, 80, 72, 20, 13, 112, 192)
_DTYPES = ("fp32", "bf16", "fp16")
_SCALES = (0.0625, 0.3, 1.0)
_SOFTCAPS = (1.0, 20.0)
# What keeps an example in the milliseconds on two cores.
_MOST_FLOPS = 2**25
# On a GPU, room for a head of 2049 queries and keys, and four times as much for a crowd. The oracle and the naive
# implementation keep tens of matrices of all scores or of all elements: of a crowd they take some 2 GiB.
_MOST_SCORES_ON_CUDA, _MOST_ELEMENTS_ON_CUDA = 2**22, 2**20
# One example in twelve is a crowd: more tiles than a GPU has multiprocessors, which is where blocks that stay take one
# after the other. Not more of them, as drawing their numbers takes longer than all else.
_CROWDS_ON_CUDA = (*(False,) * 11, True)
_ROWS_OF_A_TILE, _MULTIPROCESSORS = 192, 132
_LONG_SQUARES = (511, 512, 513, 1000, 1024, 1025, 2047, 2048, 2049)
# Where each shape costs seconds of compilation: few problems, each one different in several ways, and many values.
_FEW_PROBLEMS = (
    Problem(1, 2, 2, 64, 64, 64, "fp32"),
    Problem(1, 2, 2, 129, 129, 64, "bf16", CAUSAL),
    Problem(2, 4, 2, 256, 256, 128, "fp16", CAUSAL),
    Problem(1, 2, 1, 130, 257, 64, "fp32", CAUSAL),
    Problem(1, 4, 1, 128, 128, 32, "bf16", Mask("window", 31, 0), layout="bhsd"),
    Problem(2, 2, 2, 65, 63, 64, "fp16", Mask("causal_top_left"), scale=0.3),
    Problem(1, 3, 3, 130, 130, 64, "bf16", softcap=20.0),
    Problem(1, 1, 1, 1, 193, 128, "fp16", CAUSAL),
)


def cases(capabilities: Capabilities, device_type: str, direction: Direction) -> SearchStrategy[Case]:
    """Return a strategy for cases that ``capabilities`` include for ``direction`` on ``device_type``."""

    def inside(problem: Problem) -> bool:
        return capabilities.why_not(problem, direction, device_type) is None

    few = [problem for problem in _FEW_PROBLEMS if inside(problem)]
    if capabilities.compiles_per_shape and few:
        problems = st.sampled_from(few)
    else:
        problems = _problems(capabilities, device_type).filter(inside)
    return st.builds(
        Case,
        problem=problems,
        regime=st.sampled_from(sorted(REGIMES, key=list(REGIMES).index)),
        seed=st.integers(0, 2**16 - 1),
    )


@st.composite
def _problems(draw: st.DrawFn, capabilities: Capabilities, device_type: str) -> Problem:
    on_cuda = device_type == "cuda"
    crowd = on_cuda and draw(_one_of(_CROWDS_ON_CUDA))
    q_len, kv_len = draw(_lengths(capabilities.rectangular, on_cuda and not crowd))
    head_dims = [d for d in _HEAD_DIMS if d in capabilities.head_dims] or [capabilities.head_dims.low]
    # What is drawn first leaves so much for the rest, so that nothing that was drawn is thrown away for its size.
    if on_cuda:
        head_dim = draw(_one_of(tuple(head_dims)))
        left = min(_MOST_SCORES_ON_CUDA // (q_len * kv_len), _MOST_ELEMENTS_ON_CUDA // (max(q_len, kv_len) * head_dim))
        left *= 4 if crowd else 1
    else:
        left = _MOST_FLOPS // (4 * q_len * kv_len)
        # A single head may cost twice as much, or long sequences would never meet the common head dimensions.
        head_dim = draw(_at_most(head_dims, 2 * left))
        left //= head_dim
    group = draw(_at_most((1, 2, 3, 4, 8), left)) if capabilities.gqa else 1
    kv_heads = draw(_at_most((1, 2, 3), left // group))
    left //= group * kv_heads
    if crowd:
        tiles = kv_heads * group * math.ceil(q_len / _ROWS_OF_A_TILE)
        batch = max(1, min(left, _MULTIPROCESSORS // tiles + 1))
    else:
        batch = draw(_at_most((1, 2, 3, 5), left))
    return Problem(
        batch=batch,
        heads=kv_heads * group,
        kv_heads=kv_heads,
        q_len=q_len,
        kv_len=kv_len,
        head_dim=head_dim,
        dtype=draw(_one_of(tuple(dtype for dtype in _DTYPES if dtype in capabilities.dtypes))),
        mask=draw(_masks(capabilities.masks, kv_len)),
        softcap=draw(_maybe(_SOFTCAPS)) if capabilities.softcap else None,
        scale=draw(_maybe(_SCALES)) if capabilities.scale else None,
        layout=draw(_one_of(("bshd", "bhsd"))),
    )


@cache
def _lengths(rectangular: bool, long_squares: bool) -> SearchStrategy[tuple[int, int]]:
    """Draw ``(q_len, kv_len)``."""
    length = st.sampled_from(_EDGES) | st.sampled_from(_OTHER_EDGES) | st.integers(1, _LONGEST)
    square = (length | st.sampled_from(_LONG_SQUARES) if long_squares else length).map(lambda n: (n, n))
    if not rectangular:
        return square
    long = st.sampled_from(_LONG) | st.integers(_LONGEST, max(_LONG))
    short = st.sampled_from(_SHORT)
    forms = (
        square,
        st.tuples(length, length),
        square,
        st.tuples(st.just(1), long),
        st.tuples(short, long),
        st.tuples(long, short),
    )
    return st.sampled_from(forms).flatmap(lambda form: form)


def _at_most(values: Sequence[int], most: int) -> SearchStrategy[int]:
    """Draw one of ``values`` up to ``most``, or the smallest where none is."""
    return _one_of(tuple(value for value in values if value <= most) or (min(values),))


@cache
def _one_of(values: tuple[T, ...]) -> SearchStrategy[T]:
    return st.sampled_from(values)


@cache
def _maybe(values: tuple[T, ...]) -> SearchStrategy[T | None]:
    return st.none() | st.sampled_from(values)


@cache
def _masks(kinds: frozenset[str], kv_len: int) -> SearchStrategy[Mask]:
    plain = [Mask(kind) for kind in ("full", "causal", "causal_top_left") if kind in kinds]
    strategy: SearchStrategy[Mask] = st.sampled_from(plain) if plain else st.nothing()
    if "window" not in kinds:
        return strategy
    # Around the edges of tiles, anywhere, and wider than all keys.
    bound = st.sampled_from((0, 1, 7, *_EDGES[3:], 2 * kv_len)) | st.integers(0, kv_len)
    kind = st.just("window")
    windows = st.builds(Mask, kind, left=bound, right=st.just(0) | bound)
    windows |= st.builds(Mask, kind, left=bound, right=st.none())
    windows |= st.builds(Mask, kind, left=st.none(), right=bound)
    return strategy | windows
