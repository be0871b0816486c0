"""What the machine reaches: a matrix product and a copy, by the timer of the run, kept with the run."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from pytest_attn.perf import ceiling
from pytest_attn.perf.timers import Prepare
from tests.tool.nested import lay_out, run
from tests.tool.nested import torch_is_whole as torch_is_whole

pytest_plugins = ["pytester"]

CPU = torch.device("cpu")


class Timer:
    """Takes a millisecond for every call, which it makes."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def source(self, prepare: Prepare) -> Timer:
        self.calls.append(prepare())
        return self

    def batch(self, size: int) -> list[float]:
        self.calls[-1]()
        return [1e-3] * min(size, 4)

    def host_seconds(self) -> None:
        return None


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "_PRODUCT_ON_CPU", 100)
    monkeypatch.setattr(ceiling, "_COPY_ON_CPU", 1_000_000)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_product_counts_two_operations_a_term(small: None, dtype: str) -> None:
    assert ceiling.product_tflops(Timer(), CPU, dtype) == pytest.approx(2 * 100**3 / 1e-3 / 1e12)


def test_a_copy_reads_and_writes(small: None) -> None:
    assert ceiling.copy_gbps(Timer(), CPU) == pytest.approx(2 * 1_000_000 / 1e-3 / 1e9)


def test_what_cannot_be_taken_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **keywords: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch, "empty_like", refuse)
    assert ceiling.product_tflops(Timer(), CPU, "fp32") is None
    assert ceiling.copy_gbps(Timer(), CPU) is None


def test_the_global_generator_is_left_alone(small: None) -> None:
    before = torch.get_rng_state()
    ceiling.product_tflops(Timer(), CPU, "fp32")
    ceiling.copy_gbps(Timer(), CPU)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("brief", [False, True])
def test_a_run_keeps_them_and_a_brief_one_takes_none(pytester: pytest.Pytester, brief: bool) -> None:
    lay_out(pytester, "perf")
    only = ["--attn-impl", "naive", "--attn-direction", "fwd", "--attn-grid", "tiny.toml"]
    run(pytester, "-m", "perf", "--benchmark-json=run.json", *only, *(["--attn-brief"] if brief else []))
    found = json.loads((pytester.path / "run.json").read_text())["attn"]["instruments"]["ceilings"]
    if brief:
        assert found is None
    else:
        assert set(found) == {"tflops", "gbps"}
        assert found["gbps"] > 0
        assert found["tflops"]["fp32"] > 0
