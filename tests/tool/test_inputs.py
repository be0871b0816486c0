"""The inputs of a measurement: a change of one element is seen, and looking takes no memory to speak of."""

from __future__ import annotations

import dataclasses

import pytest

from attn_impls.problem import FULL, Problem
from pytest_attn.perf.inputs import Inputs
from pytest_attn.perf.memory import peak_bytes
from tests.tool.quick import CPU

HALF = Problem(2, 4, 2, 64, 64, 64, "bf16", FULL)


@pytest.mark.parametrize("head_dim", [64, 66, 65])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["q", "k", "v", "dout"])
def test_a_change_of_one_element_is_seen(name: str, dtype: str, head_dim: int) -> None:
    inputs = Inputs(dataclasses.replace(HALF, dtype=dtype, head_dim=head_dim), CPU)
    assert inputs.changed() is None
    getattr(inputs.tensors, name)[1, 1, 40, 7] += 1
    assert inputs.changed() == name
    inputs.renew(seed=1)
    assert inputs.changed() is None


def test_looking_for_a_change_takes_no_memory() -> None:
    inputs = Inputs(HALF, CPU)
    assert peak_bytes(lambda: None, inputs.changed, CPU) < inputs.tensors.q.nbytes / 16
