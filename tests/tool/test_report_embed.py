"""The records in the page: nothing in them ends the script that holds them, and what is no number is none."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

pytest.importorskip("pandas", reason="the report needs the extra pytest-attn[report]")

from attn_impls.problem import CAUSAL, FULL, Problem
from pytest_attn.perf.record import Record, Run
from pytest_attn.report import embed
from pytest_attn.report.embed import embedded
from pytest_attn.report.frame import records_frame, run_labels
from tests.tool.runs import run_of_problems

PROBLEMS = [Problem(2, 4, 4, s, s, 64, "bf16", mask) for s in (512, 1024) for mask in (FULL, CAUSAL)]
NASTY = "</script><!--\u2028&\ud800"


def carried(run: Run) -> tuple[str, dict]:
    text = embedded([run], run_labels([run]), records_frame([run]))
    return text, json.loads(text)


def test_texts_cannot_leave_the_script() -> None:
    def change(record: Record) -> Record:
        kernels = ({"name": NASTY, "share": 0.75, "count": 3}, {"name": "b", "share": 0.25, "count": 1}, {"no": 1})
        return dataclasses.replace(record, impl=NASTY, note=NASTY, reason=NASTY, kernels=kernels)

    text, data = carried(run_of_problems(PROBLEMS, ("naive",), change=change, device=NASTY))
    assert not set(text) & set("<>&\u2028\u2029\ud800")
    assert data["kernels"] == ["</script><!-- &\N{REPLACEMENT CHARACTER}", "b"]
    assert data["columns"]["kernels"][0] == [0, 0.75, 3, 1, 0.25, 1]


def test_every_record_is_found_by_its_row() -> None:
    run = run_of_problems(PROBLEMS, ("sdpa-flash", "naive"))
    frame, (_, data) = records_frame([run]), carried(run)
    columns = data["columns"]
    assert frame["record"].tolist() == list(range(len(run.records)))
    for row, record in enumerate(run.records):
        assert data["implementations"][columns["impl"][row]] == record.impl
        assert data["problems"][columns["problem"][row]][0] == record.problem.id
        assert data["directions"][columns["direction"][row]][0] == record.direction.value
        assert record.time_s is not None
        assert columns["time"][row] == pytest.approx(record.time_s.median, rel=6e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf, "fast", pytest.param(10**400, id="huge"), True, [1], None])
def test_what_is_no_number_is_left_empty(value: object) -> None:
    first = run_of_problems(PROBLEMS[:1], ("naive",)).records[0]
    run = run_of_problems(
        PROBLEMS[:1], ("naive",), change=lambda r: dataclasses.replace(r, host_us=value) if r == first else r
    )
    host = carried(run)[1]["columns"]["host_us"]
    assert host[0] is None
    assert host[1] == pytest.approx(30)


def test_a_page_holds_no_more_records_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "MOST_RECORDS", 5)
    _, data = carried(run_of_problems(PROBLEMS, ("naive", "flex")))
    assert data["left_out"] == len(PROBLEMS) * 2 * 3 - 5
    assert {len(column) for column in data["columns"].values()} == {5}
