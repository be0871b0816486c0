"""``--attn-shard`` splits a grid the same way everywhere; ``attn merge`` makes one run of the parts."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cpuinfo
import pytest

from attn_impls.problem import Direction
from pytest_attn.cli import main
from pytest_attn.perf.record import Run, load_run
from tests.tool.gate_runs import LARGE, MACHINE, SMALL, record, run_of, write_run
from tests.tool.nested import ROOT, lay_out, run, said
from tests.tool.nested import torch_is_whole as torch_is_whole

pytest_plugins = ["pytester"]

OTHER = replace(SMALL, heads=8, kv_heads=8)
FIRST = run_of(record(1e-3), record(None, impl="flex", status="oom", reason="out of memory"), shard="1/2")
SECOND = run_of(record(2e-3, problem=LARGE), shard="2/2")
GRID = """
[[problem]]
batch = [1, 2, 3, 4, 5]
heads = 2
seq = 16
head_dim = 8
dtype = "fp32"
"""


@pytest.fixture
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(cpuinfo, "get_cpu_info", dict)  # pytest-benchmark's takes a second a run
    lay_out(pytester, "perf")
    (pytester.path / "five.toml").write_text(GRID)
    return pytester.path


def options(*more: str, impl: str = "naive") -> list[str]:
    return ["-m", "perf", "--attn-device=cpu", "--attn-grid=five.toml", f"--attn-impl={impl}", *more]


def batches(pytester: pytest.Pytester, shard: str, impl: str) -> list[str]:
    """Return the batch of each problem that the shard collects, and that no problem lacks a direction."""
    result = run(pytester, "--collect-only", "-q", *options(f"--attn-shard={shard}", impl=impl))
    cells = [line.partition(f"[{impl}-b")[2].split("-")[0] for line in result.outlines if "::" in line]
    assert all(cells.count(batch) == len(Direction) for batch in cells)
    return list(dict.fromkeys(cells))


@pytest.mark.parametrize("impl", ["naive", "sdpa-math"])
def test_a_shard_is_every_nth_problem_whatever_runs_it(pytester: pytest.Pytester, folder: Path, impl: str) -> None:
    shards = [batches(pytester, f"{i}/3", impl) for i in (1, 2, 3)]
    assert shards == [["1", "4"], ["2", "5"], ["3"]]


@pytest.mark.parametrize("value", ["0/3", "4/3", "x", "1/0", "1", "1/3/4", "-1/3", "1/3 "])
def test_a_shard_that_is_none_is_refused(pytester: pytest.Pytester, folder: Path, value: str) -> None:
    result = run(pytester, *options(f"--attn-shard={value}"))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"--attn-shard {value!r} is not i/n with i from 1 to n, such as 2/4" in said(result)


def test_a_shard_without_problems_is_refused(pytester: pytest.Pytester, folder: Path) -> None:
    result = run(pytester, *options("--attn-shard=6/6"))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--attn-shard 6/6: the grid five.toml has fewer problems" in said(result)


def test_workers_are_refused_for_shards(pytester: pytest.Pytester, folder: Path) -> None:
    pytest.importorskip("xdist")
    result = run(pytester, *options("-n", "2"))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "leave -n out, and for several GPUs start one run for each with --attn-shard i/n" in said(result)


def test_measured_shards_make_one_run(pytester: pytest.Pytester, folder: Path) -> None:
    for i in (1, 2):
        more = [f"--attn-shard={i}/2", f"--benchmark-json={i}.json", "--attn-direction=fwd"]
        run(pytester, *options(*more)).assert_outcomes(passed=4 - i)
        assert load_run(folder / f"{i}.json").shard == f"{i}/2"
    assert main(["merge", str(folder / "1.json"), str(folder / "2.json"), "-o", str(folder / "all.json")]) == 0
    whole = load_run(folder / "all.json")
    assert whole.shard is None
    assert [record.problem.batch for record in whole.records] == [1, 3, 5, 2, 4]
    compare = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", "all.json", "--group-by=group", "--columns=median"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert compare.returncode == 0, compare.stderr
    assert (compare.stdout + compare.stderr).count(": 1 tests") == 5
    assert main(["gate", "compare", str(folder / "all.json"), str(folder / "all.json")]) == 0


def merge(folder: Path, *parts: Run, allow: str | None = None) -> int:
    files = [write_run(folder / f"{index}.json", part) for index, part in enumerate(parts, 1)]
    more = [] if allow is None else ["--allow", allow]
    return main(["merge", *map(str, files), "-o", str(folder / "all.json"), *more])


def test_everything_of_the_parts_is_in_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert merge(tmp_path, FIRST, SECOND) == 0
    whole = load_run(tmp_path / "all.json")
    assert {r.key: r for r in whole.records} == {r.key: r for r in FIRST.records + SECOND.records}
    assert (whole.grid, whole.machine, whole.environment) == (FIRST.grid, FIRST.machine, FIRST.environment)
    output = capsys.readouterr()
    assert output.out == f"{tmp_path / 'all.json'}: 3 records of 2 parts\n"
    assert output.err == ""


def test_an_implementation_that_ran_somewhere_is_not_missing(tmp_path: Path) -> None:
    gone = {"flex": {"version": "2.13", "missing": "needs cuda"}, "naive": {"version": "1", "missing": None}}
    here = {"flex": {"version": "2.13", "missing": None}, "naive": {"version": "2", "missing": None}}
    assert merge(tmp_path, replace(FIRST, implementations=gone), replace(SECOND, implementations=here)) == 0
    assert load_run(tmp_path / "all.json").implementations == {
        "flex": {"version": "2.13", "missing": None},
        "naive": {"version": "1+2", "missing": None},
    }


@pytest.mark.parametrize(
    ("first", "second", "whole"),
    [(40, 40, 40), (None, 40, 40), (40, None, 40), (None, None, None), (40, 48, "the parts have different builds")],
)
def test_what_compiled_kernels_take_is_told_once_for_all_parts(
    tmp_path: Path, first: int | None, second: int | None, whole: int | str | None
) -> None:
    def resources(told: int | str | None) -> dict[str, object]:
        if isinstance(told, int):
            return {"missing": None, "kernels": {"k": {"registers": told, "local_bytes": 0, "shared_bytes": 0}}}
        return {"missing": told or "no cuobjdump", "kernels": None}

    def known(told: int | str | None) -> dict[str, object]:
        return {"naive": {"version": "1", "missing": None, "resources": resources(told)}}

    unused = run_of(
        record(1e-3, problem=OTHER), shard="3/3", implementations={"naive": {"version": "1", "missing": None}}
    )
    parts = (
        replace(FIRST, shard="1/3", implementations=known(first)),
        replace(SECOND, shard="2/3", implementations=known(second)),
    )
    assert merge(tmp_path, unused, *parts) == 0
    assert load_run(tmp_path / "all.json").implementations == known(whole)


def test_missing_shards_are_named_and_can_be_added_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = replace(FIRST, shard="1/4"), replace(SECOND, shard="3/4")
    assert merge(tmp_path, first, second) == 0
    assert capsys.readouterr().err == "attn merge: warning: without shard 2/4, 4/4: the grid is not complete\n"
    partial = load_run(tmp_path / "all.json")
    assert partial.shard == "1+3/4"
    third, fourth = (run_of(record(1.0, problem=OTHER, impl=name), shard=f"{name}/4") for name in "24")
    assert merge(tmp_path, partial, fourth, third) == 0
    assert load_run(tmp_path / "all.json").shard is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "changed", "sentence", "stated"),
    [
        ("machine", {"machine": MACHINE | {"driver": "9"}}, "machine (driver: 580.1 -> 9)", MACHINE["driver"] + "+9"),
        (
            "contract",
            {"records": (record(1.0, problem=LARGE, contract="kineto/1"),)},
            "contract (events/1 -> kineto/1)",
            None,
        ),
        ("grid", {"grid": "lab5"}, "grid (smoke -> lab5)", "smoke+lab5"),
    ],
)
def test_parts_of_different_runs_need_leave(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    changed: dict[str, object],
    sentence: str,
    stated: str | None,
) -> None:
    second = replace(SECOND, **changed)  # type: ignore[arg-type]
    others = ",".join({"machine", "contract", "grid"} - {name})
    for allow in (None, others):
        assert merge(tmp_path, FIRST, second, allow=allow) == 2
        assert f"2.json differ in {sentence}; --allow {name} joins them all the same\n" in capsys.readouterr().err
        assert not (tmp_path / "all.json").exists()
    assert merge(tmp_path, FIRST, second, allow=name) == 0
    whole = load_run(tmp_path / "all.json")
    assert {"machine": whole.machine["driver"], "contract": None, "grid": whole.grid}[name] == stated
    assert {record.contract for record in whole.records} == {r.contract for r in FIRST.records + second.records}


def test_a_cell_of_two_parts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert merge(tmp_path, FIRST, run_of(record(3e-3), shard="2/2"), allow="machine,contract,grid") == 2
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    sentence = f"{first} and {second} both hold naive {SMALL.id} fwd (1 cell in common)"
    assert capsys.readouterr().err == f"attn merge: {sentence}\n"


@pytest.mark.parametrize(
    ("parts", "allow", "sentence"),
    [
        ((FIRST, run_of(shard="2/2")), None, "2.json holds no records"),
        ((FIRST, replace(SECOND, shard="2/3")), None, "the parts are shards of different splits: 1/2, 2/3"),
        ((FIRST, replace(SECOND, shard="two")), None, "a part says that it is shard 1/2 or two, which is not i/n"),
        ((FIRST, SECOND), "driver", "--allow: 'driver' is not one of machine, contract, grid"),
        (
            (FIRST, replace(SECOND, machine={"device": "abacus", "device_type": "cpu"})),
            "machine",
            "2.json are of a CPU and of a GPU; no option joins them",
        ),
    ],
    ids=["empty", "splits", "shard", "allow", "device"],
)
def test_what_cannot_be_joined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], parts: tuple[Run, ...], allow: str | None, sentence: str
) -> None:
    assert merge(tmp_path, *parts, allow=allow) == 2
    assert capsys.readouterr().err.endswith(f"{sentence}\n")
    assert not (tmp_path / "all.json").exists()


def test_another_environment_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert merge(tmp_path, FIRST, replace(SECOND, environment={"torch": "2.14.0"})) == 0
    assert "has another environment than" in capsys.readouterr().err
    assert json.loads((tmp_path / "all.json").read_text())["attn"]["environment"] == {"torch": "2.13.0+2.14.0"}
