"""The ladder's page: its tables come from the JSON of runs and of ``attn profile``."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from attn_impls.problem import FULL, Direction, Problem
from attn_impls.registry import discover
from pytest_attn.counters.document import Call, Kernel, Profile
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
    timed = [{"extra_info": {"attn": each.to_dict()}} for each in records if each.time_s is not None]
    (folder / "run.json").write_text(json.dumps({"benchmarks": timed, "attn": run.header()}))
    names = [str(folder / "run.json")]
    for number, calls in enumerate(profiles):
        profile = Profile("hw4", Direction.FWD, "Nsight Compute", {"device": "H100"}, calls=list(calls))
        names.append(str(folder / f"profile{number}.json"))
        Path(names[-1]).write_text(json.dumps(profile.to_dict()))
    page = folder / "page.md"
    page.write_text((ROOT / "docs" / "ladder.md").read_text())
    for _ in range(2):  # the second time over what the first wrote
        make.main(names, page, folder / "ladder.svg")
    return between(page.read_text(), "measured")


def between(page: str, mark: str) -> list[str]:
    lines = page.splitlines()
    begin = lines.index(f"<!-- {mark} -->") + 1
    return lines[begin : lines.index("<!-- end -->", begin)]


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
        "| time (over the rung before) | 4, 256, 64 | 4, 1024, 64 | TFLOP/s at 1024 |",
        "| --- | --- | --- | --- |",
        "| `tiled-smem` | 4.00 ms | 40.0 ms | 0.0268 |",
        "| `tiled-pad` | 1.00 ms (4.00×) |  |  |",
        "| `naive` | 500 µs |  |  |",
        "",
        "| counters at 4, 1024, 64 | `tiled-smem` | `tiled-pad` |",
        "| --- | --- | --- |",
        "| time under the profiler | 2.5 ms | 1 ms |",
        "| registers a thread | 32 | 40 |",
        "",
        "### bf16",
        "",
        "| time (over the rung before) | 4, 1024, 64 | TFLOP/s at 1024 |",
        "| --- | --- | --- |",
        "| `tiled-regs` | 30.0 ms | 0.0358 |",
        "| `tiled-mma` | 3.00 ms (10.0×) | 0.358 |",
        "| `tiled-overlap` | 1.00 ms (3.00×) | 1.07 |",
        "",
        "| counters at 4, 1024, 64 | `tiled-regs` | `tiled-overlap` |",
        "| --- | --- | --- |",
        "| time under the profiler | 30 ms | 1 ms |",
        "| global loads through L1 | 2 GB | n/a |",
        "| tensor pipe | 0 % | 61.5 % |",
    ]


def test_counters_are_of_the_largest_problem(make: ModuleType) -> None:
    small = [call("tiled-smem", SMALL, l2_bytes=7e9, inst_executed=3e6)]
    large = [call("tiled-smem", LARGE, duration=4e-3, l2_bytes=8e9, inst_executed=5e6)]
    for calls in (small + large, large + small):
        assert make.counters(calls).splitlines() == [
            "| counters at 4, 1024, 64 | `tiled-smem` |",
            "| --- | --- |",
            "| time under the profiler | 4 ms |",
            "| bytes through L2 | 8 GB |",
            "| instructions | 5 M |",
        ]


def test_every_dtype_is_measured_against_the_foot_where_that_was_timed(make: ModuleType) -> None:
    larger = dataclasses.replace(HALF, q_len=4096, kv_len=4096)
    records = [record("tiled-seq", SMALL, 10.0), record("tiled-seq", LARGE, 160.0), record("tiled-global", LARGE, 0.15)]
    records += [record("tiled-mma", problem, 1e-3) for problem in (HALF, larger)] + [record("sdpa-cudnn", larger, 2e-3)]
    found = make.medians(records)
    assert make.times(found, "fp32").splitlines() == [
        "| time (over the rung before) | 4, 256, 64 | 4, 1024, 64 | TFLOP/s at 1024 | over `tiled-seq` at 1024 |",
        "| --- | --- | --- | --- | --- |",
        "| `tiled-seq` | 10.0 s | 160 s | 0.00000671 | 1.0× |",
        "| `tiled-global` |  | 150 ms (1070×) | 0.00716 | 1100× |",
    ]
    assert make.times(found, "bf16").splitlines() == [
        "| time (over the rung before) | 4, 1024, 64 | 4, 4096, 64 | TFLOP/s at 4096 | over `tiled-seq` at 1024 |",
        "| --- | --- | --- | --- | --- |",
        "| `tiled-mma` | 1.00 ms | 1.00 ms | 17.2 | 160000× |",
        "| `sdpa-cudnn` |  | 2.00 ms | 8.59 |  |",
    ]


def test_blocks_of_each_length_stand_with_what_they_keep_busy(make: ModuleType) -> None:
    busy = {"sm_efficiency": 14.14, "achieved_occupancy": 6.25}
    two = [Kernel("a", "(16, 1, 1)", "(128, 1, 1)"), Kernel("b", "(2, 3, 1)", "(128, 1, 1)")]
    calls = [
        Call("tiled-mma", LARGE, Direction.FWD, "ok", kernels=two, values=busy),
        Call("tiled-regs", SMALL, Direction.FWD, "ok", kernels=two[:1], values={}),
        Call("naive", SMALL, Direction.FWD, "ok", kernels=two, values=busy),
    ]
    assert make.filling(calls).splitlines() == [
        "| blocks, multiprocessors busy, occupancy | 4, 256, 64 | 4, 1024, 64 |",
        "| --- | --- | --- |",
        "| `tiled-regs` | 16, n/a, n/a |  |",
        "| `tiled-mma` |  | 22, 14.1 %, 6.25 % |",
    ]


def test_copies_have_a_table_of_their_own_that_says_what_is_missing(make: ModuleType, tmp_path: Path) -> None:
    flat, pitched = "tiled-regs+copies-flat-1stream", "tiled-regs+copies-pitched-4stream"
    records = [record(flat, SMALL, 2e-3), record(flat, LARGE, 5e-3), record(pitched, SMALL, 3e-3)]
    records += [Record(pitched, LARGE, Direction.FWD, "error", "events/2", "too slow")]
    records += [record("tiled-regs", SMALL, 1e-3), record("tiled-pad", SMALL, 9e-3)]
    measured = written(make, tmp_path, records)
    assert not any("copies" in line for line in measured)
    page = (tmp_path / "page.md").read_text()
    assert between(page, "copies") == [
        "| time | 4, 256, 64 | 4, 1024, 64 |",
        "| --- | --- | --- |",
        "| `tiled-regs` | 1.00 ms | – |",
        f"| `{flat}` | 2.00 ms | 5.00 ms |",
        f"| `{pitched}` | 3.00 ms | – |",
        "",
        f"Missing: `{pitched}` at 4, 1024, 64: too slow.",
    ]
    assert page.rstrip().endswith((ROOT / "docs" / "ladder.md").read_text().splitlines()[-1])


def test_chart_has_a_line_a_rung_in_the_panel_of_its_dtype(make: ModuleType) -> None:
    other = dataclasses.replace(LARGE, head_dim=32)  # of another shape: in no line
    short = dataclasses.replace(SMALL, dtype="bf16")
    timed = [("tiled-pad", SMALL), ("tiled-pad", LARGE), ("naive", LARGE), ("triton", other)]
    timed += [("tiled-mma", HALF), ("tiled-mma", short)]
    drawn = make.chart(make.medians([record(impl, problem, 1e-3) for impl, problem in timed])).decode()
    lines = set(re.findall(r'id="(panel-\d-line-[^"]+)"', drawn))
    assert lines == {"panel-0-line-tiled-pad", "panel-0-line-naive", "panel-1-line-tiled-mma"}
    assert make.chart(make.medians([record("tiled-pad", LARGE, 1e-3), record("tiled-mma", HALF, 1e-3)])) is None


def test_page_shows_what_the_files_beside_the_script_hold(make: ModuleType, tmp_path: Path) -> None:
    names = ("fp32", "bf16", "seq", "copies", "fp32-profile", "bf16-profile")
    page, picture = tmp_path / "page.md", tmp_path / "ladder.svg"
    page.write_text((ROOT / "docs" / "ladder.md").read_text())
    make.main([str(ROOT / "reports" / "h100" / "ladder" / f"{name}.json") for name in names], page, picture)
    assert page.read_text() == (ROOT / "docs" / "ladder.md").read_text()
    assert picture.stat().st_size > 10_000


def test_columns_stand_in_one_order_in_every_process(make: ModuleType) -> None:
    problems = [dataclasses.replace(SMALL, head_dim=head_dim) for head_dim in (128, 64, 96, 32, 256)]
    found = make.medians([record("tiled-smem", problem, 1e-3) for problem in problems])
    head = make.times(found, "fp32").splitlines()[0]
    columns = [f"4, 256, {head_dim}" for head_dim in (32, 64, 96, 128, 256)]
    assert head == f"| time (over the rung before) | {' | '.join(columns)} | TFLOP/s at 256 |"


def test_page_and_climb_know_every_rung(make: ModuleType) -> None:
    page = (ROOT / "docs" / "ladder.md").read_text()
    ours = {name for name in discover() if name.startswith("tiled-")} - {"tiled-torch", "tiled-cpu"}
    assert {f"tiled-{rung}" for rung in make.RUNGS} == ours
    assert all(f"`tiled-{rung}`" in page for rung in make.RUNGS)


def test_columns_are_rows_of_a_profile(make: ModuleType) -> None:
    assert set(make.COUNTERS) <= set(BY_NAME)
