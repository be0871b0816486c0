"""The ladder's page: its tables come from a run's JSON and from Nsight Compute's CSV."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from attn_impls.problem import FULL, Direction, Problem
from attn_impls.registry import discover
from pytest_attn.perf.record import Record, Run, Time
from tests.tool.nested import ROOT

SMALL, LARGE = (Problem(4, 1, 1, n, n, 64, "fp32", FULL) for n in (256, 1024))
CSV = """\
==PROF== Connected to process 1 (/usr/bin/python3)
"ID","Kernel Name","gpu__time_duration.sum","launch__registers_per_thread"
"","","nsecond","register/thread"
"0","void attn::(anonymous namespace)::smem_forward_kernel<float>(attn::ForwardParams<float>)","9,000,000","32"
"1","void attn::(anonymous namespace)::smem_forward_kernel<float>(attn::ForwardParams<float>)","2,500,000","32"
"2","void at::native::vectorized_elementwise_kernel<4>(int)","1","16"
"""


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


def test_tables_are_filled_in(make: ModuleType, tmp_path: Path) -> None:
    records = (
        record("naive", SMALL, 0.5e-3),
        record("tiled-pad", SMALL, 1e-3),
        record("tiled-smem", SMALL, 4e-3),
        record("tiled-smem", LARGE, 40e-3),
    )
    run = Run(records, "hw4", {"device": "H100"}, {})
    timed = [{"extra_info": {"attn": each.to_dict()}} for each in records]
    (tmp_path / "run.json").write_text(json.dumps({"benchmarks": timed, "attn": run.header()}))
    (tmp_path / "counters.csv").write_text(CSV)
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "ladder.md").read_text())
    for _ in range(2):  # the second time over what the first wrote
        make.main([str(tmp_path / "run.json"), str(tmp_path / "counters.csv")], page)
    lines = page.read_text().splitlines()
    start = lines.index("<!-- measured -->")
    assert lines[start + 1 : lines.index("<!-- end -->")] == [
        "H100.",
        "",
        "| ms (over the rung before) | 4, 256, 64 | 4, 1024, 64 |",
        "| --- | --- | --- |",
        "| `tiled-smem` | 4 | 40 |",
        "| `tiled-pad` | 1 (4.00×) |  |",
        "| `naive` | 0.5 |  |",
        "",
        "| rung | ms | registers |",
        "| --- | --- | --- |",
        "| `tiled-smem` | 2.5 | 32 |",
    ]


def test_page_knows_every_rung(make: ModuleType) -> None:
    page = (ROOT / "docs" / "ladder.md").read_text()
    assert {f"tiled-{rung}" for rung in make.RUNGS} <= set(discover())
    assert all(f"`tiled-{rung}`" in page for rung in make.RUNGS)
