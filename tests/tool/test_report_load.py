"""What a report costs for a large run, and that values no run should hold neither stop it nor get into a figure."""

from __future__ import annotations

import dataclasses
import math
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("pandas", reason="the report needs the extra pytest-attn[report]")
pytest.importorskip("matplotlib", reason="the report needs the extra pytest-attn[report]")
pytest.importorskip("jinja2", reason="the report needs the extra pytest-attn[report]")

import runs

from attn_impls.grids import load_grid
from pytest_attn.perf.record import Record, Run, Time
from pytest_attn.report import rendering, write_report
from pytest_attn.report.frame import records_frame


def cpu_seconds() -> float:
    """CPU time of this process and of those it waited for: the clock would depend on the machine's load."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def test_twenty_thousand_records_give_a_bounded_page_in_bounded_time(tmp_path: Path) -> None:
    run = runs.run_of_problems(runs.many_problems(840))
    assert len(run.records) > 20_000
    before = cpu_seconds()
    page = write_report([run], tmp_path)
    assert cpu_seconds() - before < 45  # 14 s on an idle machine, shared by two cores
    assert page.stat().st_size < 10e6
    assert len(list((tmp_path / "figures").glob("*.png"))) < 80
    text = page.read_text(encoding="utf-8")
    assert "more rows are in" in text
    assert "of this plane are in results.csv only" in text


def test_what_another_process_draws_is_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = runs.grid_run("lab5-seq", ("naive", "flex"), directions=("fwd",))
    here, there, broken = (tmp_path / name for name in ("here", "there", "broken"))
    monkeypatch.setattr(rendering, "_LEAST_SHARED", 4)
    monkeypatch.setattr(rendering, "_cores", lambda: 2)
    write_report([run], there)
    monkeypatch.setattr(rendering, "_WORK", "raise SystemExit(1)")
    write_report([run], broken)
    monkeypatch.setattr(rendering, "_cores", lambda: 1)
    write_report([run], here)
    names = sorted(path.relative_to(here) for path in here.rglob("*") if path.is_file())
    assert sum(name.suffix == ".png" for name in names) > 8
    for name in names:
        assert (here / name).read_bytes() == (there / name).read_bytes() == (broken / name).read_bytes()


ODD: dict[str, Mapping[str, Any]] = {
    "nan": {"telemetry": {"energy_j": math.nan, "sm_mhz": math.nan}, "accuracy": {"error_ratio": math.nan}},
    "infinite": {"percent_of_peak": math.inf, "percent_of_peak_at_clock": math.inf, "compile_s": math.inf},
    "negative": {
        "telemetry": {"energy_j": -1.0},
        "percent_of_peak": -1.0,
        "compile_s": -1.0,
        "accuracy": {"error_ratio": -1},
        "host_us": -5.0,
    },
    "zero": {"percent_of_peak": 0.0, "percent_of_peak_at_clock": 0.0, "compile_s": 0.0, "telemetry": {"energy_j": 0}},
    "text": {"telemetry": {"energy_j": "much", "sm_mhz": ["1"]}, "accuracy": {"error_ratio": {}}, "compile_s": "x"},
    "shapeless": {"telemetry": ["?"], "accuracy": "good", "kernels": ("one", None), "percent_of_peak": True},
}


@pytest.mark.parametrize("odd", ODD)
def test_values_that_are_none_are_left_out(odd: str, tmp_path: Path) -> None:
    def change(record: Record) -> Record:
        return dataclasses.replace(record, **ODD[odd])

    run = runs.run_of_problems(load_grid("hw4"), ("naive", "flex"), directions=("fwd",), change=change)
    run = dataclasses.replace(run, machine={**run.machine, "memory_bytes": "80 GB"})
    text = write_report([run], tmp_path).read_text(encoding="utf-8")
    for path in (tmp_path / "figures").glob("*.svg"):
        ElementTree.fromstring(path.read_bytes())
    if odd != "infinite":
        assert "No figure of energy" in text
    if odd != "zero":
        assert not {"nan×", "inf"} & set(text.split())
    if odd in ("nan", "negative", "text", "shapeless"):
        assert "No figure of accuracy: no record holds an error." in text


def test_a_time_that_is_no_time_is_not_compared(tmp_path: Path) -> None:
    def change(record: Record) -> Record:
        bad = {256: math.nan, 1024: -1.0, 4096: 0.0}.get(record.problem.q_len)
        if bad is None or record.impl != "flex":
            return record
        return dataclasses.replace(record, time_s=Time(bad, bad, bad, 3))

    run = runs.run_of_problems(load_grid("hw4"), ("naive", "flex"), directions=("fwd",), change=change)
    frame = records_frame([run])
    assert frame.loc[frame["impl"] == "flex", "ok"].tolist() == [False, False, False, True]
    assert "no usable time" in write_report([run], tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize("count", [0, 1])
def test_an_empty_run_and_a_single_record_beside_another_run(count: int, tmp_path: Path) -> None:
    full = runs.grid_run("hw4", ("naive", "flex"), directions=("fwd",), source="full.json")
    few: Run = dataclasses.replace(full, records=full.records[:count], source="few.json")
    text = write_report([full, few], tmp_path).read_text(encoding="utf-8")
    assert ("in one of the two runs only" in text) == (count == 1)


def test_long_names_and_markup_stay_text_in_every_kind_of_figure(tmp_path: Path) -> None:
    names = ["naive", '<script>alert("1")</script>' + "n" * 200, "a&b $x^2$ \\frac", "tiled-<b>", "tiled-x"]
    first = runs.grid_run("lab5-seq", names, directions=("fwd",), device="<i>one</i>", source="a.json")
    second = runs.grid_run("lab5-seq", names, directions=("fwd",), device="two & \x00", source="b.json", seed=3)
    text = write_report([first, second], tmp_path).read_text(encoding="utf-8")
    assert text.count("<script>alert") == 0
    assert "<i>" not in text
    drawn = list((tmp_path / "figures").glob("*.svg"))
    assert {"ladder-fwd.svg", "speed-up-b-over-a-fwd.svg", "first-call.svg"} <= {path.name for path in drawn}
    for path in drawn:
        ElementTree.fromstring(path.read_bytes())
    assert (tmp_path / "index.html").stat().st_size < 10e6
