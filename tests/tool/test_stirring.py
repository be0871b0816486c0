"""Every round sees other values: who remembers results is timed at work, and the inputs end as they began."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import pytest
import torch

from attn_impls import Direction, Implementation, Problem
from attn_impls.naive import naive
from attn_impls.problem import FULL
from pytest_attn.perf.inputs import Inputs
from pytest_attn.perf.measure import measure
from pytest_attn.perf.stirring import Stirring
from tests.tool.quick import CPU, QUICK

SMALL = Problem(1, 2, 2, 32, 32, 8, "fp32", FULL)
HALF = Problem(2, 4, 2, 1, 600, 64, "bf16", FULL)

Key = Callable[[torch.Tensor], object]


def version(tensor: torch.Tensor) -> object:
    return tensor.data_ptr(), tensor._version


def values(tensor: torch.Tensor) -> object:
    return tensor.detach().numpy().tobytes()


@pytest.mark.parametrize("key", [version, values])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["q", "k", "v"])
def test_who_remembers_results_is_timed_at_work(which: int, key: Key) -> None:
    memory: dict[object, torch.Tensor] = {}

    def remembers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        found = key((q, k, v)[which]), torch.is_grad_enabled()  # the check asks for gradients, too
        if found not in memory:
            time.sleep(0.005)
            memory[found] = naive(q, k, v, problem)
        return memory[found]

    record = measure(Implementation("remembers", remembers), SMALL, Direction.FWD, CPU, QUICK)
    assert record.time_s is not None, record.reason
    assert record.time_s.median >= 0.005


@pytest.mark.parametrize("problem", [HALF, SMALL, dataclasses.replace(SMALL, layout="bhsd")], ids=lambda p: p.id)
def test_no_two_rounds_see_the_same_values(problem: Problem) -> None:
    inputs = Inputs(problem, CPU)
    stirring = Stirring(inputs.tensors)
    tensors = {name: getattr(inputs.tensors, name) for name in ("q", "k", "v", "dout")}
    seen: dict[str, set[bytes]] = {name: set() for name in tensors}
    for _turn in range(4):
        for _round in range(8):
            stirring.stir()
            for name, tensor in tensors.items():
                seen[name].add(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        stirring.put_back()
        assert inputs.changed() is None
    assert {len(each) for each in seen.values()} == {32}


def test_signs_change_in_place_and_nothing_else() -> None:
    inputs = Inputs(SMALL, CPU)
    q, before = inputs.tensors.q, inputs.tensors.q.clone()
    pointer, version = q.data_ptr(), q._version
    Stirring(inputs.tensors).stir()
    assert (q.data_ptr(), q.abs().equal(before.abs())) == (pointer, True)
    assert q._version > version
    assert 0 < int((q != before).sum()) <= q.numel() / 16


def test_what_was_drawn_anew_is_not_undone() -> None:
    inputs = Inputs(SMALL, CPU)
    stirring = Stirring(inputs.tensors)
    stirring.stir()
    inputs.renew(seed=1)
    stirring.forget()
    stirring.put_back()
    assert inputs.changed() is None


def test_inputs_without_elements_can_be_stirred() -> None:
    inputs = Inputs(dataclasses.replace(SMALL, batch=0), CPU)
    stirring = Stirring(inputs.tensors)
    stirring.stir()
    stirring.put_back()
    assert inputs.changed() is None


@pytest.mark.parametrize("rounds", [1, 31, 32, 33, 64, 75])
def test_a_turn_of_any_number_of_rounds_is_put_back(rounds: int) -> None:
    inputs = Inputs(SMALL, CPU)
    stirring = Stirring(inputs.tensors)
    for _turn in range(2):
        for _round in range(rounds):
            stirring.stir()
        stirring.put_back()
        assert inputs.changed() is None
