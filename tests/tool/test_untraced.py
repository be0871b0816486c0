"""``--attn-untraced``: no profiler in this process, and an earlier run named where it looked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_attn.perf import instruments
from pytest_attn.perf.contract import contract_for
from pytest_attn.perf.record import load_run
from pytest_attn.perf.untraced import TracedRun
from tests.tool.fake_cuda import Cuda, Host
from tests.tool.fake_cuda import cuda as cuda
from tests.tool.fake_cuda import host as host
from tests.tool.nested import lay_out, run, said
from tests.tool.nested import torch_is_whole as torch_is_whole

pytest_plugins = ["pytester"]

ARGUMENTS = ("-m", "perf", "--attn-grid=tiny.toml", "--attn-impl=naive", "--attn-direction=fwd", "--attn-device=cpu")


@pytest.fixture
def traced(pytester: pytest.Pytester) -> Path:
    """A run that was traced itself."""
    lay_out(pytester, "perf")
    run(pytester, *ARGUMENTS, "--benchmark-json=traced.json").assert_outcomes(passed=2)
    return pytester.path / "traced.json"


def test_kernels_are_left_to_the_run_that_is_named(
    pytester: pytest.Pytester, traced: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_attn.perf.identity.operators_of", lambda call: pytest.fail("a profiler was started"))
    result = run(pytester, *ARGUMENTS, "--benchmark-json=run.json", "--attn-untraced=traced.json")
    result.assert_outcomes(passed=2)
    before, after = load_run(traced), load_run(pytester.path / "run.json")
    assert all(record.kernels for record in before.records)
    assert before.instruments["traced_by"] is None
    for record in after.records:
        assert (record.status, record.kernels, record.kernel_s) == ("ok", None, None)
        assert record.note == "what ran was not traced here, but in traced.json"
    assert after.instruments["traced_by"] == "traced.json"
    assert {record.contract for record in after.records} == {record.contract for record in before.records}


def test_a_cell_that_was_traced_nowhere_is_not_said_to_be(pytester: pytest.Pytester, traced: Path) -> None:
    data = json.loads(traced.read_text())
    first, second = (row["extra_info"]["attn"] for row in data["benchmarks"])
    first["kernels"] = None
    traced.write_text(json.dumps(data))
    by_another_version = json.loads(traced.read_text())
    by_another_version["benchmarks"][1]["extra_info"]["attn"]["impl_version"] = "torch 0"
    (pytester.path / "older.json").write_text(json.dumps(by_another_version))

    def notes(source: str) -> dict[str, str | None]:
        run(pytester, *ARGUMENTS, "--benchmark-json=run.json", f"--attn-untraced={source}").assert_outcomes(passed=2)
        return {record.problem.id: record.note for record in load_run(pytester.path / "run.json").records}

    nowhere = "what ran is not proved: neither this run nor {} has the kernels of this cell and version"
    there = "what ran was not traced here, but in traced.json"
    assert notes("traced.json") == {first["problem_id"]: nowhere.format("traced.json"), second["problem_id"]: there}
    assert set(notes("older.json").values()) == {nowhere.format("older.json")}


def test_the_calibration_is_that_of_the_run_that_is_named(
    host: Host, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instruments, "_telemetry", lambda device: (None, "none"))
    contract, device = contract_for("events", "cuda"), torch.device("cuda")
    assert instruments.Instruments(device, contract).overhead_s == pytest.approx(3e-6)
    there = TracedRun("traced.json", 2.5e-6, "nothing")
    borrowed = instruments.Instruments(device, contract, there)
    described = borrowed.describe()
    assert borrowed.overhead_s == 2.5e-6
    assert (described["overhead_us"], described["overhead_from"]) == (2.5, "nothing")


def of_another_machine(data: dict[str, Any]) -> None:
    data["attn"]["machine"]["device"] = "abacus"


def of_another_contract(data: dict[str, Any]) -> None:
    for row in data["benchmarks"]:
        row["extra_info"]["attn"]["contract"] = "wall/1"


def untraced_itself(data: dict[str, Any]) -> None:
    data["attn"]["instruments"]["traced_by"] = "an earlier one"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (of_another_machine, "traced.json was taken on another machine"),
        (of_another_contract, "traced.json holds no record under the contract wall/4"),
        (untraced_itself, "traced.json was not traced itself"),
        (None, "traced.json is not JSON, or was cut short"),
    ],
)
def test_a_run_that_cannot_stand_for_this_one_is_refused(
    pytester: pytest.Pytester, traced: Path, change: Any, sentence: str
) -> None:
    if change is None:
        traced.write_text(traced.read_text()[:-30])
    else:
        data = json.loads(traced.read_text())
        change(data)
        traced.write_text(json.dumps(data))
    result = run(pytester, *ARGUMENTS, "--attn-untraced=traced.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"--attn-untraced: {sentence}" in said(result)


def test_it_goes_with_no_isolation(pytester: pytest.Pytester, traced: Path) -> None:
    result = run(pytester, *ARGUMENTS, "--attn-untraced=traced.json", "--attn-isolate")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--attn-untraced goes with neither --attn-isolate nor" in said(result)
