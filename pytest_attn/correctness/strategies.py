"""Hypothesis strategies that draw cases inside an implementation's capabilities.

A case is drawn, never a tensor element: a seed and a regime say as much as a million floats, cost nothing to generate
and shrink to something readable. Lengths are biased towards the edges of tiles, where kernels break.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from attn_impls.implementation import Capabilities
from attn_impls.problem import CAUSAL, Direction, Mask, Problem
from pytest_attn.correctness.case import Case
from pytest_attn.correctness.regimes import REGIMES

# Around the tile edges in use (16, 32, 64, 128, 256), simplest first for shrinking.
_EDGES = (1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257)
_LONGEST = 320
_HEAD_DIMS = (16, 32, 64, 128, 8, 40, 96, 256, 1, 3, 5, 80, 72, 20)
_DTYPES = ("fp32", "bf16", "fp16")
_SCALES = (0.0625, 0.3, 1.0)
_SOFTCAPS = (1.0, 20.0)
# What keeps an example in the milliseconds on two cores.
_MOST_FLOPS = 12 * 2**22
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
        problems = _problems(capabilities).filter(lambda problem: inside(problem) and problem.flops() <= _MOST_FLOPS)
    return st.builds(
        Case,
        problem=problems,
        regime=st.sampled_from(sorted(REGIMES, key=list(REGIMES).index)),
        seed=st.integers(0, 2**16 - 1),
    )


@st.composite
def _problems(draw: st.DrawFn, capabilities: Capabilities) -> Problem:
    lengths = st.sampled_from(_EDGES) | st.integers(1, _LONGEST)
    q_len = draw(lengths)
    kv_len = draw(st.just(q_len) | lengths) if capabilities.rectangular else q_len
    kv_heads = draw(st.integers(1, 3))
    group = draw(st.sampled_from((1, 2, 3, 4))) if capabilities.gqa else 1
    head_dims = [d for d in _HEAD_DIMS if d in capabilities.head_dims]
    return Problem(
        batch=draw(st.integers(1, 2)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        q_len=q_len,
        kv_len=kv_len,
        head_dim=draw(st.sampled_from(head_dims or [capabilities.head_dims.low])),
        dtype=draw(st.sampled_from([dtype for dtype in _DTYPES if dtype in capabilities.dtypes])),
        mask=draw(_masks(capabilities, kv_len)),
        softcap=draw(st.none() | st.sampled_from(_SOFTCAPS)) if capabilities.softcap else None,
        scale=draw(st.none() | st.sampled_from(_SCALES)) if capabilities.scale else None,
        layout=draw(st.sampled_from(("bshd", "bhsd"))),
    )


def _masks(capabilities: Capabilities, kv_len: int) -> SearchStrategy[Mask]:
    plain = [Mask(kind) for kind in ("full", "causal", "causal_top_left") if kind in capabilities.masks]
    strategy: SearchStrategy[Mask] = st.sampled_from(plain) if plain else st.nothing()
    if "window" not in capabilities.masks:
        return strategy
    bound = st.sampled_from((0, 1, 7, 31, 32, 63, 64, 127)).filter(lambda n: n <= kv_len) | st.integers(0, kv_len)
    windows = st.builds(Mask, st.just("window"), left=bound, right=st.just(0) | bound) | st.builds(
        Mask, st.just("window"), left=bound, right=st.none()
    )
    return strategy | windows
