"""The ladder's page: its tables come from the JSON of runs and of ``attn profile``."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from attn_impls.problem import FULL, Direction, Problem
from attn_impls.registry import discover
from pytest_attn.counters.document import Call, Profile
from pytest_attn.counters.rows import BY_NAME
from pytest_attn.perf.record import Record, Run, Time
from tests.tool.nested import ROOT

SMALL, LARGE = (Problem(4, 1, 1, n, n, 64, "fp32", FULL) for n in (256, 1024))
HALF = dataclasses.replace(LARGE, dtype="bf16")


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ladder_make", ROOT / "reports" / "h100" / "ladder" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(impl: str, problem: Problem, seconds: float) -> Record:
    return Record(impl, problem, Direction.FWD, "ok", "events/2", time_s=Time(seconds, seconds, seconds, 10))


def call(impl: str, problem: Problem, **values: float | None) -> Call:
    return Call(impl, problem, Direction.FWD, "ok", values=dict(values))


def written(make: ModuleType, folder: Path, records: Sequence[Record], *profiles: Sequence[Call]) -> list[str]:
    run = Run(tuple(records), "hw4", {"device": "H100"}, {})
    timed = [{"extra_info": {"attn": each.to_dict()}} for each in records]
    (folder / "run.json").write_text(json.dumps({"benchmarks": timed, "attn": run.header()}))
    names = [str(folder / "run.json")]
    for number, calls in enumerate(profiles):
        profile = Profile("hw4", Direction.FWD, "Nsight Compute", {"device": "H100"}, calls=list(calls))
        names.append(str(folder / f"profile{number}.json"))
        Path(names[-1]).write_text(json.dumps(profile.to_dict()))
    page = folder / "page.md"
    page.write_text((ROOT / "docs" / "ladder.md").read_text())
    for _ in range(2):  # the second time over what the first wrote
        make.main(names, page)
    lines = page.read_text().splitlines()
    return lines[lines.index("<!-- measured -->") + 1 : lines.index("<!-- end -->")]


def test_each_dtype_has_its_times_and_counters(make: ModuleType, tmp_path: Path) -> None:
    records = (
        record("naive", SMALL, 0.5e-3),
        record("tiled-pad", SMALL, 1e-3),
        record("tiled-smem", SMALL, 4e-3),
        record("tiled-smem", LARGE, 40e-3),
        record("tiled-overlap", HALF, 1e-3),
        record("tiled-mma", HALF, 3e-3),
        record("tiled-regs", HALF, 30e-3),
    )
    first = [
        call("tiled-smem", SMALL, duration=1.0, registers=32),
        call("tiled-smem", LARGE, duration=2e-3, registers=32),
        call("tiled-pad", LARGE, duration=1e-3, registers=40, gld_bytes=None),
        call("naive", LARGE, duration=1.0, registers=8),
        Call("tiled-pad", SMALL, Direction.FWD, "oom", "full"),
    ]
    second = [
        call("tiled-smem", LARGE, duration=2.5e-3, registers=32),
        call("tiled-overlap", HALF, duration=1e-3, gld_bytes=None, tensor_precision_fu_utilization=61.5),
        call("tiled-regs", HALF, duration=30e-3, gld_bytes=2e9, tensor_precision_fu_utilization=0.0),
    ]
    assert written(make, tmp_path, records, first, second) == [
        "H100.",
        "",
        "### fp32",
        "",
        "| ms (over the rung before) | 4, 256, 64 | 4, 1024, 64 |",
        "| --- | --- | --- |",
        "| `tiled-smem` | 4 | 40 |",
        "| `tiled-pad` | 1 (4.00×) |  |",
        "| `naive` | 0.5 |  |",
        "",
        "| counters at 4, 1024, 64 | ms | registers |",
        "| --- | --- | --- |",
        "| `tiled-smem` | 2.5 | 32 |",
        "| `tiled-pad` | 1 | 40 |",
        "",
        "### bf16",
        "",
        "| ms (over the rung before) | 4, 1024, 64 |",
        "| --- | --- |",
        "| `tiled-regs` | 30 |",
        "| `tiled-mma` | 3 (10.00×) |",
        "| `tiled-overlap` | 1 (3.00×) |",
        "",
        "| counters at 4, 1024, 64 | ms | GB global loads | % tensor pipe |",
        "| --- | --- | --- | --- |",
        "| `tiled-regs` | 30 | 2 | 0 |",
        "| `tiled-overlap` | 1 | n/a | 61.5 |",
    ]


def test_counters_are_of_the_largest_problem_in_the_units_of_their_columns(make: ModuleType) -> None:
    counted = {"l2_bytes": 7e9, "dram_read_bytes": 5e6, "shared_load_transactions": 2e6, "inst_executed": 3e6}
    small = [call("tiled-smem", SMALL, **counted)]
    large = [call("tiled-smem", LARGE, duration=4e-3, gld_bytes=6e9, shared_ld_bank_conflict=8e6, **counted)]
    for calls in (small + large, large + small):
        assert make.counters(calls).splitlines() == [
            "| counters at 4, 1024, 64 | ms | GB global loads | GB through L2 | MB from DRAM | M shared load turns "
            "| M load conflicts | M instructions |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            "| `tiled-smem` | 4 | 6 | 7 | 5 | 2 | 8 | 3 |",
        ]


def test_columns_stand_in_one_order_in_every_process(make: ModuleType) -> None:
    problems = [dataclasses.replace(SMALL, head_dim=head_dim) for head_dim in (128, 64, 96, 32, 256)]
    head = make.times([record("tiled-smem", problem, 1e-3) for problem in problems]).splitlines()[0]
    assert head == f"| ms (over the rung before) | {' | '.join(f'4, 256, {d}' for d in (32, 64, 96, 128, 256))} |"


def test_page_and_climb_know_every_rung(make: ModuleType) -> None:
    page = (ROOT / "docs" / "ladder.md").read_text()
    ours = {name for name in discover() if name.startswith("tiled-")} - {"tiled-torch", "tiled-cpu"}
    assert {f"tiled-{rung}" for rung in make.RUNGS} == ours
    assert all(f"`tiled-{rung}`" in page for rung in make.RUNGS)


def test_columns_are_rows_of_a_profile(make: ModuleType) -> None:
    assert set(make.COUNTERS) <= set(BY_NAME)
