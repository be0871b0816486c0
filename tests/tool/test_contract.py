"""The terms of a measurement and the machine it is taken on: what is picked, what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
from importlib import resources

import pytest
import torch

from pytest_attn.perf.contract import contract_for
from pytest_attn.perf.device import environment, machine, pick_device

DEVICE = {
    "warmup_s": 0.02,
    "warmup_cap_s": 0.3,
    "flat": 0.01,
    "batch_s": 0.02,
    "min_rounds": 10,
    "max_rounds": 500,
    "least_s": 0.4,
    "budget_s": 0.5,
    "precision": 0.005,
    "noisy_above": 0.1,
}
WALL = DEVICE | {"warmup_s": 0.03, "warmup_cap_s": 0.05, "flat": 0.05}
WALL |= {"least_s": 0.0, "budget_s": 0.15, "noisy_above": 0.25}
BRIEF = {"warmup_cap_s": 0.1, "least_s": 0.05, "budget_s": 0.1}
# What every id that is taken today stands for, energy_s, isolated and brief aside.
TERMS = {
    "events/4": DEVICE,
    "events/4-brief": DEVICE | BRIEF,
    "kineto/3": DEVICE,
    "kineto/3-brief": DEVICE | BRIEF,
    "wall/4": WALL,
    "wall/4-brief": WALL | BRIEF | {"warmup_cap_s": 0.05, "least_s": 0.0},
}


def test_an_id_stands_for_the_same_terms_for_ever() -> None:
    whole = [contract_for(timer, device) for timer, device in (("events", "cuda"), ("kineto", "cuda"), ("wall", "cpu"))]
    found = {}
    for contract in (*whole, *(contract.shortened() for contract in whole)):
        terms = dataclasses.asdict(contract)
        timer, version = terms.pop("timer"), terms.pop("version")
        assert contract.id.removesuffix("-brief") == f"{timer}/{version}"
        assert (terms.pop("energy_s"), terms.pop("isolated"), terms.pop("brief")) == (0, False, "brief" in contract.id)
        found[contract.id] = terms
    assert found == TERMS, (
        "a term was changed: stored times were taken under the old ones. Raise the version in contract.py, "
        "then write the new id and its terms here and in docs/timing.md"
    )


@pytest.mark.parametrize(
    ("timer", "device", "expected"),
    [
        ("auto", "cpu", "wall/4"),
        ("auto", "cuda", "events/4"),
        ("wall", "cpu", "wall/4"),
        ("events", "cuda", "events/4"),
        ("kineto", "cuda", "kineto/3"),
    ],
)
def test_contracts(timer: str, device: str, expected: str) -> None:
    contract = contract_for(timer, device)
    assert contract.id == expected
    assert 10 <= contract.min_rounds < contract.max_rounds
    assert contract.precision < contract.noisy_above
    assert contract.warmup_s < contract.warmup_cap_s < contract.budget_s


def test_an_isolated_process_is_another_contract() -> None:
    contract = dataclasses.replace(contract_for("events", "cuda"), isolated=True)
    assert contract.id == "events/4-isolated"


def test_a_loop_that_heats_the_device_is_another_contract() -> None:
    contract = dataclasses.replace(contract_for("events", "cuda"), energy_s=0.6)
    assert contract.id == "events/4-energy"
    both = dataclasses.replace(contract, isolated=True).shortened()
    assert both.id == "events/4-energy-isolated-brief"
    schema = json.loads(resources.files("pytest_attn.perf").joinpath("record.schema.json").read_text("utf-8"))
    allowed = schema["$defs"]["record"]["properties"]["contract"]["pattern"]
    assert all(re.search(allowed, each.id) for each in (contract, both, both.shortened()))


def test_a_brief_contract_is_another_one_and_shorter() -> None:
    for timer, device in (("events", "cuda"), ("wall", "cpu")):
        whole = contract_for(timer, device)
        brief = whole.shortened()
        assert brief.id == f"{whole.id}-brief"
        assert brief.budget_s == 0.1 < whole.budget_s
        assert brief.least_s < brief.budget_s
        assert brief.min_rounds == whole.min_rounds
    isolated = dataclasses.replace(contract_for("events", "cuda"), isolated=True)
    assert isolated.shortened().id == "events/4-isolated-brief"


@pytest.mark.parametrize(
    ("timer", "device", "sentence"),
    [
        ("sundial", "cpu", "timer 'sundial' is not one of auto, events, kineto, wall"),
        ("events", "cpu", "timer 'events' needs a CUDA device, not cpu"),
        ("kineto", "cpu", "timer 'kineto' needs a CUDA device, not cpu"),
        ("wall", "cuda", "timer 'wall' would time the launches of a CUDA device, not its work; use 'events'"),
    ],
)
def test_contract_refusals(timer: str, device: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        contract_for(timer, device)
    assert str(refused.value) == sentence


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("name", "count", "device"),
    [
        ("auto", 0, "cpu"),
        ("cpu", 0, "cpu"),
        ("cpu", 2, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cuda", 2, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_devices(monkeypatch: pytest.MonkeyPatch, name: str, count: int, device: str) -> None:
    pretend_gpus(monkeypatch, count)
    assert pick_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("name", "count", "sentence"),
    [
        *(
            (name, 2, f"device {name!r} is not one of auto, cpu, cuda, cuda:0, cuda:1, ...")
            for name in ("tpu", "", "cpu:0", "auto:1", "cuda:x", "cuda:-1")
        ),
        ("cuda", 0, "device 'cuda' asked for, but this machine has no CUDA device that torch can use"),
        ("cuda:2", 2, "device 'cuda:2' asked for, but this machine has 2 CUDA device(s)"),
    ],
)
def test_device_refusals(monkeypatch: pytest.MonkeyPatch, name: str, count: int, sentence: str) -> None:
    pretend_gpus(monkeypatch, count)
    with pytest.raises(ValueError, match=r".") as refused:
        pick_device(name)
    assert str(refused.value) == sentence


def test_machine_and_environment_of_a_cpu() -> None:
    found = machine(torch.device("cpu"))
    assert set(found) == {"device", "device_type", "capability", "cores", "threads"}
    assert found["device_type"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert environment()["torch"] == torch.__version__
