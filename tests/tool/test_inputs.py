"""The inputs of a measurement: a change of one element is seen, and looking takes no memory to speak of."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from attn_impls.problem import FULL, Problem
from pytest_attn.perf.inputs import Inputs
from pytest_attn.perf.memory import nbytes, peak_bytes
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


@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
@pytest.mark.parametrize("name", ["q", "k", "v", "dout"])
def test_values_that_change_places_are_seen(name: str, layout: str) -> None:
    inputs = Inputs(dataclasses.replace(HALF, layout=layout), CPU)
    tensor = getattr(inputs.tensors, name)
    for dim in range(4):
        for moved in (tensor.flip(dim), tensor.roll(1, dim)):
            kept = tensor.clone()
            tensor.copy_(moved)
            assert inputs.changed() == name, dim
            tensor.copy_(kept)
            assert inputs.changed() is None
    one, other = tensor[0, 1, 5].clone(), tensor[1, 0, 9].clone()
    tensor[0, 1, 5], tensor[1, 0, 9] = other, one
    assert inputs.changed() == name


@pytest.mark.parametrize("place", [(0, 0, 0, 3), (1, 1, 1, 3), (0, 1, 2, 3), (1, 0, 63, 63)])
def test_a_sign_is_seen_wherever_it_stands(place: tuple[int, ...]) -> None:
    inputs = Inputs(HALF, CPU)
    inputs.tensors.k[place] *= -1  # the highest bit of a word of 8 bytes, which an even weight would lose
    assert inputs.changed() == "k"


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_signs_that_only_the_highest_bits_of_words_hold_are_seen(dtype: str) -> None:
    """As in the conjugate of interleaved pairs: an even number of them adds nothing to a sum over all words."""
    inputs = Inputs(dataclasses.replace(HALF, dtype=dtype), CPU)
    in_a_word = 4 if dtype == "bf16" else 2
    inputs.tensors.q[..., in_a_word - 1 :: in_a_word].neg_()
    assert inputs.changed() == "q"


@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_a_tensor_transposed_in_place_is_seen_and_put_back(layout: str) -> None:
    inputs = Inputs(dataclasses.replace(HALF, layout=layout), CPU)
    form = inputs.tensors.k.shape, inputs.tensors.k.stride()
    inputs.tensors.k.transpose_(2, 3)
    assert inputs.changed() == "k"
    inputs.renew(seed=1)
    assert inputs.changed() is None
    assert (inputs.tensors.k.shape, inputs.tensors.k.stride()) == form


def test_looking_for_a_change_takes_no_memory() -> None:
    inputs = Inputs(dataclasses.replace(HALF, q_len=1024, kv_len=1024), CPU)
    every = nbytes(getattr(inputs.tensors, name) for name in ("q", "k", "v", "dout"))
    assert peak_bytes(lambda: None, inputs.changed, CPU) < every / 16


def test_another_storage_is_a_change_and_is_given_back() -> None:
    inputs = Inputs(HALF, CPU)
    q = inputs.tensors.q
    before, pointer = q.clone(), q.data_ptr()
    q.set_(torch.zeros(3, dtype=q.dtype))  # type: ignore[call-overload]
    assert inputs.changed() == "q"
    inputs.renew(seed=1)
    assert (inputs.changed(), q.data_ptr(), q.shape) == (None, pointer, before.shape)
    assert not torch.equal(q, before)
