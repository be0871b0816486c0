"""``--attn-gate``, ``--attn-cells`` and ``--attn-shuffle`` in a run of pytest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tool.nested import lay_out, run, said
from tests.tool.nested import torch_is_whole as torch_is_whole

pytest_plugins = ["pytester"]

SETTINGS = "[tool.pytest-attn.gate.time]\nwall_floor_s = 0\nstored_relative = '100%'\n"
TINY = ("-m", "perf", "--attn-grid", "tiny.toml", "--attn-direction", "fwd", "--attn-impl", "naive")
Base = Callable[[float], str]


@pytest.fixture
def base(pytester: pytest.Pytester) -> Base:
    """Times the tiny grid once and stores it with its times multiplied."""
    lay_out(pytester, "perf")
    pytester.path.joinpath("pyproject.toml").write_text(SETTINGS)

    def store(factor: float) -> str:
        assert run(pytester, *TINY, "--benchmark-json=base.json").ret == 0
        path = Path(pytester.path, "base.json")
        data = json.loads(path.read_text())
        for row in data["benchmarks"]:
            time = row["extra_info"]["attn"]["time_s"]
            time |= {name: time[name] * factor for name in ("median", "p10", "p90")}
        path.write_text(json.dumps(data))
        return "--attn-gate=base.json"

    return store


def test_a_slower_cell_fails_the_run_without_a_traceback(
    pytester: pytest.Pytester, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = run(pytester, *TINY, base(0.01))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*attention: gate*",
            "slower *naive*",
            "attn gate: 2 cells: 2 slower*FAIL",
            "::error title=attn gate::naive: 2 slower*",
        ]
    )
    result.assert_outcomes(passed=2)
    assert "Traceback" not in said(result)


def test_a_noise_floor_of_the_settings_holds_here_too(pytester: pytest.Pytester, base: Base) -> None:
    stored = base(0.01)
    run_ = json.loads((pytester.path / "base.json").read_text())
    cells = [
        {"impl": "naive", "problem_id": f"b1-h2-kv2-q16-k16-d8-fp32-{mask}", "direction": "fwd", "floor": 9.0}
        for mask in ("full", "causal")
    ]
    floor = {"schema": 2, "machine": run_["attn"]["machine"], "cells": cells}
    (pytester.path / "floor.json").write_text(json.dumps(floor))
    (pytester.path / "pyproject.toml").write_text(f'[tool.pytest-attn.gate]\nnoise_floor = "floor.json"\n{SETTINGS}')
    result = run(pytester, *TINY, stored)
    assert result.ret == 0, "a hundred times as long is within the floor"
    result.stdout.fnmatch_lines(["note: the noise floor raises the threshold of 2 of 2 cells*", "attn gate: *ok"])
    (pytester.path / "floor.json").write_text(json.dumps(floor | {"machine": {"device": "abacus"}}))
    result = run(pytester, *TINY, stored)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--attn-gate: the noise of" in said(result)


def test_what_is_not_slower_passes(pytester: pytest.Pytester, base: Base) -> None:
    result = run(pytester, *TINY, base(100))
    assert result.ret == 0
    result.stdout.fnmatch_lines(["attn gate: 2 cells: 0 slower, 2 faster*ok"])
    assert "::error" not in said(result)


def test_a_base_that_cannot_be_compared_is_refused_before_anything_is_timed(
    pytester: pytest.Pytester, base: Base
) -> None:
    option = base(1)
    path = Path(pytester.path, "base.json")
    path.write_text(path.read_text().replace('"device_type": "cpu"', '"device_type": "cuda"'))
    stored = path.read_text()
    result = run(pytester, *TINY, option, "--benchmark-json=base.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "differ in machine (device_type: cuda -> cpu)" in said(result)
    assert path.read_text() == stored, "what was refused replaces nothing"
    path.write_text(path.read_text()[:100])
    result = run(pytester, *TINY, option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--attn-gate: base.json is not JSON, or was cut short" in said(result)


def test_a_run_that_times_nothing_does_not_pass_the_gate(pytester: pytest.Pytester, base: Base) -> None:
    option = base(1)
    pytester.path.joinpath("test_other.py").write_text("def test_other(): pass\n")
    result = run(pytester, "test_other.py", option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--attn-gate: nothing was timed; add -m perf" in said(result)


def cells(result: pytest.RunResult) -> list[str]:
    """The timed cells in the order they ran."""
    lines = [line.partition("] ")[2] for line in result.outlines if line.startswith("[") and "] naive" in line]
    return [" ".join(line.split()[:3]) for line in lines]


def test_only_listed_cells_are_timed(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "perf")
    pytester.path.joinpath("cells.txt").write_text("naive b1-h2-kv2-q16-k16-d8-fp32-causal fwd\n\n")
    result = run(pytester, *TINY, "--attn-cells=cells.txt")
    result.assert_outcomes(passed=1, deselected=1)
    assert cells(result) == ["naive b1-h2-kv2-q16-k16-d8-fp32-causal fwd"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("naive b9 fwd\n", "this run has no cell naive b9 fwd"),
        ("naive\n", "line 1: not 'implementation problem direction'"),
        (None, "cannot read cells.txt: No such file"),
    ],
)
def test_a_list_that_cannot_be_used_is_one_sentence(pytester: pytest.Pytester, text: str | None, sentence: str) -> None:
    lay_out(pytester, "perf")
    if text is not None:
        pytester.path.joinpath("cells.txt").write_text(text)
    result = run(pytester, *TINY, "--attn-cells=cells.txt")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert sentence in said(result)


def test_a_seed_gives_one_order_whatever_else_is_timed(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "perf")
    directions = (*TINY[:4], "--attn-impl", "naive", "--collect-only", "-q")

    def order(*options: str) -> list[str]:
        result = run(pytester, *directions, *options)
        return [line for line in result.outlines if "::" in line]

    orders = {seed: order("--attn-shuffle", str(seed)) for seed in range(4)}
    assert len({tuple(each) for each in orders.values()}) == 4
    assert orders[3] == order("--attn-shuffle=3")
    fewer = [line for line in orders[3] if "bwd" not in line]
    assert fewer == order("--attn-shuffle=3", "--attn-direction=fwd")
