"""Time, TFLOP/s and memory of every implementation over a grid: ``pytest -m perf --benchmark-json=run.json``."""

import pytest


@pytest.mark.perf
def test_perf(attn_impl, attn_problem, attn_direction, attn_bench):
    attn_bench(attn_impl, attn_problem, attn_direction)
