"""Timed runs: JSON with a record for whatever happened, readable by us and by pytest-benchmark's own compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cpuinfo
import pytest

import pytest_attn.perf.record as record_module
from pytest_attn.perf.record import load_run
from tests.tool.nested import ROOT, lay_out, run, said
from tests.tool.nested import torch_is_whole as torch_is_whole

jsonschema = pytest.importorskip("jsonschema")

pytest_plugins = ["pytester"]


def test_workers_of_xdist_do_not_time_whatever_started_them(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "perf")
    found = pytester.runpytest_subprocess("-m", "", "-n", "1", "--attn-impl", "naive", "--attn-grid", "tiny.toml")
    assert found.ret == 1
    found.stdout.fnmatch_lines(["*leave -n out*--attn-shard i/n*"])


SCHEMA = json.loads(Path(record_module.__file__).with_name("record.schema.json").read_text())
FULL, CAUSAL = "b1-h2-kv2-q16-k16-d8-fp32-full", "b1-h2-kv2-q16-k16-d8-fp32-causal"


@pytest.fixture(autouse=True)
def _laid_out(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(cpuinfo, "get_cpu_info", dict)  # pytest-benchmark's takes a second a run
    lay_out(pytester, "perf")


def options(*names: str, direction: str = "fwd") -> list[str]:
    chosen = [f"--attn-impl={name if name in ('naive', 'sdpa-math') else f'mykernels:{name}'}" for name in names]
    device = ["--attn-device=cpu", "--attn-grid=tiny.toml", f"--attn-direction={direction}"]
    return ["-m", "perf", *device, *chosen, "--benchmark-json=run.json"]


def timed(pytester: pytest.Pytester, *names: str, direction: str = "fwd") -> pytest.RunResult:
    return run(pytester, *options(*names, direction=direction))


def written(pytester: pytest.Pytester) -> dict[str, Any]:
    """Return the JSON, after checking it against the schema."""
    data: dict[str, Any] = json.loads((pytester.path / "run.json").read_text())

    def validate(part: object, definition: str) -> None:
        validator = jsonschema.Draft202012Validator
        jsonschema.validate(part, {**SCHEMA, "$ref": f"#/$defs/{definition}"}, validator)

    validate(data["attn"], "run")
    for benchmark in data["benchmarks"]:
        validate(benchmark["extra_info"]["attn"], "record")
    return data


def statuses(pytester: pytest.Pytester) -> dict[tuple[str, str], str]:
    """Return the status by implementation and mask, as a reader of the file finds it."""
    found = load_run(pytester.path / "run.json")
    return {
        (record.impl.removeprefix("mykernels:"), record.problem.mask.kind): record.status for record in found.records
    }


def test_a_timed_run_writes_records(pytester: pytest.Pytester) -> None:
    result = timed(pytester, "naive", "right", direction="bwd,fwd,fwd_bwd")
    result.assert_outcomes(passed=12)
    data = written(pytester)
    assert data["attn"]["grid"] == "tiny.toml"
    assert data["attn"]["machine"]["device_type"] == "cpu"
    assert data["machine_info"]["attn"] == data["attn"]["machine"]
    assert data["attn"]["implementations"]["mykernels:right"] == {"version": "unversioned", "missing": None}
    assert data["attn"]["implementations"]["flex"]["missing"] == "needs cuda"
    assert data["attn"]["not_timed"] == []
    assert len(data["benchmarks"]) == 12
    for benchmark in data["benchmarks"]:
        record, stats = benchmark["extra_info"]["attn"], benchmark["stats"]
        assert stats["median"] == pytest.approx(record["time_s"]["median"], rel=1e-12)
        assert stats["rounds"] == record["time_s"]["n"] == 5
        assert stats["min"] <= record["time_s"]["p10"] <= record["time_s"]["p90"] <= stats["max"]
        assert benchmark["options"]["timer"] == record["contract"] == "wall/4"
        assert benchmark["group"] == f"{record['problem_id']} {record['direction']}"
        assert record["accuracy"]["error_ratio"] <= 1
        assert record["memory"]["peak_bytes"] > 0
    assert {r.key for r in load_run(pytester.path / "run.json").records} == {
        (impl, problem, direction)
        for impl in ("naive", "mykernels:right")
        for problem in (FULL, CAUSAL)
        for direction in ("fwd", "bwd", "fwd_bwd")
    }
    compare = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", "run.json", "--group-by=group", "--columns=median"],
        cwd=pytester.path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert compare.returncode == 0, compare.stderr
    for direction in ("fwd", "bwd", "fwd_bwd"):
        assert f"benchmark '{FULL} {direction}': 2 tests" in compare.stdout + compare.stderr


def test_implementations_of_one_cell_follow_each_other(pytester: pytest.Pytester) -> None:
    result = timed(pytester, "naive", "right", direction="fwd,bwd")
    cells = [line.split("] ", 1)[1].split()[:3] for line in result.outlines if line.startswith("[")]
    assert cells == [
        [impl, problem, direction]
        for problem in (FULL, CAUSAL)
        for direction in ("fwd", "bwd")
        for impl in ("naive", "mykernels:right")
    ]


def test_a_problem_is_finished_before_the_next_whatever_the_file(pytester: pytest.Pytester) -> None:
    pytester.path.joinpath("test_perf_too.py").write_text((pytester.path / "test_perf.py").read_text())
    result = run(pytester, "--collect-only", "-q", *options("naive", "right"))
    problems = [FULL if FULL in line else CAUSAL for line in result.outlines if "::" in line]
    assert problems == [FULL] * 4 + [CAUSAL] * 4


def test_progress_and_summary(pytester: pytest.Pytester) -> None:
    result = timed(pytester, "naive", "full_card")
    time = r"\d+:\d\d left\]"
    result.stdout.re_match_lines(
        [
            rf"\[1/4, {time} naive +{FULL} fwd +[\d.]+ [mµ]?s +[\d.e+]+ [TG]FLOP/s +[\d.]+ [KMG]iB$",
            rf"\[2/4, {time} mykernels:full_card {FULL} fwd +oom: out of memory: asked for 12.50 GiB$",
            rf"\[3/4, {time} naive +{CAUSAL} fwd +",
            rf"\[4/4, 0:00 left\] mykernels:full_card {CAUSAL} fwd +oom: ",
            "grid tiny.toml: 2 ok, 2 oom$",
            "charts: attn report run.json -o attn-report$",
        ]
    )


def test_out_of_memory_is_a_result(pytester: pytest.Pytester) -> None:
    result = timed(pytester, "full_card", "naive")
    result.assert_outcomes(passed=2, skipped=2)
    assert result.ret == 0
    assert statuses(pytester) == {
        ("naive", "full"): "ok",
        ("naive", "causal"): "ok",
        ("full_card", "full"): "oom",
        ("full_card", "causal"): "oom",
    }
    reasons = {record["reason"] for record in written(pytester)["attn"]["not_timed"]}
    assert reasons == {"out of memory: asked for 12.50 GiB"}


def test_nothing_but_out_of_memory_still_writes(pytester: pytest.Pytester) -> None:
    result = timed(pytester, "full_card")
    result.assert_outcomes(skipped=2)
    assert result.ret == 0
    assert "Not saving anything" not in said(result)
    data = written(pytester)
    assert data["benchmarks"] == []
    assert data["machine_info"]["attn"] == data["attn"]["machine"]
    assert set(statuses(pytester).values()) == {"oom"}


def test_one_that_raises_fails_and_the_others_are_recorded(pytester: pytest.Pytester) -> None:
    result = timed(pytester, "raising", "naive")
    result.assert_outcomes(passed=2, failed=2)
    assert result.ret == 1
    found = statuses(pytester)
    assert found[("naive", "causal")] == "ok"
    assert found[("raising", "full")] == found[("raising", "causal")] == "error"
    assert {r["reason"] for r in written(pytester)["attn"]["not_timed"]} == {"RuntimeError: kernel exploded"}
    result.stdout.fnmatch_lines([f"mykernels:raising on {FULL} fwd: RuntimeError: kernel exploded"])


def test_an_unknown_pytest_benchmark_is_refused(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_benchmark.fixture.BenchmarkFixture._make_stats", lambda self: None)
    result = timed(pytester, "naive")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "install pytest-benchmark>=5.2,<6" in said(result)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [("gone/run.json", "gone/run.json: there is no folder gone"), (".", ". is a folder, not a file")],
)
def test_a_json_that_cannot_be_written_is_refused_before_anything_is_timed(
    pytester: pytest.Pytester, path: str, sentence: str
) -> None:
    result = run(pytester, *options("naive")[:-1], "--benchmark-json", path)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: --benchmark-json {sentence}" in result.errlines


def test_a_timed_cell_is_a_benchmark_to_the_options_that_choose_by_that(pytester: pytest.Pytester) -> None:
    run(pytester, *options("naive"), "--benchmark-only").assert_outcomes(passed=2)
    run(pytester, *options("naive"), "--benchmark-skip").assert_outcomes(skipped=2)


def test_a_run_compared_with_one_of_this_machine_is_of_the_same_machine(pytester: pytest.Pytester) -> None:
    cell = "test_perf.py::test_perf[naive-b1-h4-kv4-q128-k128-d64-fp32-full-fwd]"  # nothing of ours is named
    run(pytester, "-m", "perf", cell, "--benchmark-save=before").assert_outcomes(passed=1)
    compared = run(pytester, "-m", "perf", cell, "--benchmark-compare", "-v")
    compared.assert_outcomes(passed=1)
    assert "Comparing against benchmarks from" in said(compared)
    assert "machine_info is different" not in said(compared)


def test_benchmarks_that_are_disabled_write_no_json(pytester: pytest.Pytester) -> None:
    result = run(pytester, *options("naive"), "--benchmark-disable")
    result.assert_outcomes(passed=2)
    assert not (pytester.path / "run.json").exists()
    assert "attn report" not in said(result)


def test_what_is_wrong_is_not_timed(pytester: pytest.Pytester) -> None:
    expected = {
        "off_by_one_percent": "wrong result: the error is ",
        "nan": "wrong result: out is not finite",
        "short": "the output has shape (1, 2, 15, 8), not (1, 2, 16, 8)",
        "nothing": "the output is None, not a tensor",
    }
    result = timed(pytester, *expected)
    result.assert_outcomes(failed=8)
    assert result.ret == 1
    data = written(pytester)
    assert data["benchmarks"] == []
    assert len(data["attn"]["not_timed"]) == 8
    for record in data["attn"]["not_timed"]:
        assert record["status"] == "error"
        assert record["reason"].startswith(expected[record["impl"].removeprefix("mykernels:")])


def test_cells_outside_the_capabilities_are_recorded(pytester: pytest.Pytester) -> None:
    result = timed(pytester, "plain", "naive")
    result.assert_outcomes(passed=3)
    assert statuses(pytester)[("plain", "causal")] == "unsupported"
    (record,) = written(pytester)["attn"]["not_timed"]
    assert (record["impl"], record["problem_id"], record["reason"]) == ("mykernels:plain", CAUSAL, "has no causal mask")
    result.stdout.fnmatch_lines(["grid tiny.toml: 3 ok, 1 unsupported"])


def test_a_correctness_run_says_nothing_of_cells(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    arguments = ("-m", "correctness", "-k", "forward", "--attn-impl=mykernels:plain", "--attn-device=cpu")
    result = run(pytester, *arguments, "--attn-grid=tiny.toml", "test_equivalence.py", "test_perf.py")
    result.assert_outcomes(passed=1, deselected=4)
    result.stdout.fnmatch_lines(["*attention: worst error over budget*"])
    result.stdout.no_fnmatch_line("*attention: records*")


def test_ctrl_c_keeps_the_problems_that_were_measured(pytester: pytest.Pytester) -> None:
    stopped = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options("naive", "interrupted")],
        cwd=pytester.path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert stopped.returncode == pytest.ExitCode.INTERRUPTED, stopped.stdout + stopped.stderr
    written(pytester)
    assert statuses(pytester) == {("naive", "full"): "ok", ("interrupted", "full"): "ok"}


def test_a_run_without_json_says_how_to_keep_it(pytester: pytest.Pytester) -> None:
    result = run(pytester, *options("naive")[:-1])
    result.stdout.fnmatch_lines(["to keep them: pytest -m perf --benchmark-json=run.json"])
    assert not (pytester.path / "run.json").exists()


def test_the_wide_tables_come_with_v(pytester: pytest.Pytester) -> None:
    assert "Legend:" not in said(timed(pytester, "naive"))
    assert "Legend:" in said(run(pytester, "-v", *options("naive")))


def test_one_that_finds_that_it_cannot_run(pytester: pytest.Pytester) -> None:
    result = timed(pytester, "unavailable", "naive")
    result.assert_outcomes(passed=2, failed=2)  # it was asked for by name
    assert "mykernels:unavailable cannot run here: no compiler" in said(result)
