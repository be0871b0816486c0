"""What the gate writes: summary in Markdown, annotations, JUnit, JSON, and the terminal's table."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest

from pytest_attn.gate import Outcome, Thresholds, Verdict
from pytest_attn.gate.annotations import workflow_commands
from pytest_attn.gate.document import document
from pytest_attn.gate.junit import junit
from pytest_attn.gate.markdown import LIMIT, markdown
from pytest_attn.gate.shown import change
from pytest_attn.gate.terminal import render, summary

EVIL = "a|b\n::error::x%0A<i>\x1b[31m&`*"


def verdict(outcome: str = "slower", impl: str = "flex", number: int = 0, **changes: object) -> Verdict:
    fields: dict[str, object] = {"base": 1e-3, "head": 1.05e-3} | changes
    sentence = str(fields.pop("sentence", "+5.0 %, and 15 of 15 pairs are slower by more than 1 %"))
    code = str(fields.pop("code", "paired"))
    return Verdict(impl, f"b{number}", "fwd", Outcome(outcome), code, sentence, **fields)  # type: ignore[arg-type]


SLOWER = verdict()
LOST = verdict("no-data", code="gone", sentence="the head does not have this cell", head=None, lost=True)
UNSURE = verdict("unsure", code="clock", sentence="the clock moved")
SAME = verdict("same", code="within", sentence="+0.1 %, less than 3 %")
NEITHER = verdict("no-data", code="both-oom", sentence="base: oom; head: oom", base=None, head=None)
MORE = verdict(metric="peak_bytes", base=float(1 << 20), head=float(3 << 20), code="grew", sentence="peak_bytes grew")
ALL = [SLOWER, MORE, LOST, UNSURE, NEITHER, SAME]


def test_the_summary_line_counts_cells_and_exact_metrics_apart() -> None:
    assert summary(ALL, 1) == (
        "attn gate: 5 cells: 1 slower, 1 unsure, 1 same, 2 no-data, 1 LOST (measured in base, not in head); "
        "1 exact metric: 1 more: FAIL"
    )
    assert summary([SAME], 0) == "attn gate: 1 cell: 0 slower, 1 same: ok"


def test_the_terminal_shows_a_metric_in_its_own_unit_and_word() -> None:
    header, row = render([MORE])
    assert row.split()[:5] == ["more", "flex", "b0", "fwd", "peak_bytes"]
    assert "1.00 MiB  3.00 MiB  +200.0 %" in row
    assert header.split()[4] == "metric"


@pytest.mark.parametrize(("ratio", "shown"), [(1.05, "+5.0 %"), (0.9996, "+0.0 %"), (0.9994, "-0.1 %")])
def test_a_change_too_small_to_show_has_no_minus(ratio: float, shown: str) -> None:
    assert change(verdict(base=1e-3, head=ratio * 1e-3)) == shown


def test_markdown_has_the_worst_first_and_hides_what_needs_no_attention() -> None:
    page = markdown(ALL, 1, notes=["note: the environment differs"])
    assert page.startswith("### Attention gate: failed\n")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "flex" in line]
    assert [row.split(" | ")[0] for row in rows] == ["| **slower**", "| **more**", "| **LOST**", "| unsure"]
    assert "Not shown: 2 verdicts that need no attention." in page
    assert "note: the environment differs" in page
    assert markdown([SAME], 0).startswith("### Attention gate: passed\n")


def test_markdown_shows_names_as_they_are() -> None:
    page = markdown([verdict(impl=EVIL)], 1)
    (row,) = [line for line in page.splitlines() if "x%0A" in line]
    assert len(re.findall(r"(?<!\\)\|", row)) == 10, "nine columns"
    assert r"a\|b ::error::x%0A&lt;i&gt;?\[31m&amp;\`\*" in row


def test_markdown_is_cut_to_what_a_summary_holds() -> None:
    verdicts = [verdict(number=number, sentence="ü" * 200) for number in range(4000)]
    page = markdown(verdicts, 1)
    assert len(page.encode()) <= LIMIT < 1 << 20
    assert len(page.encode()) > LIMIT - 1000, "what fits is shown"
    left_out = int(re.findall(r"(\d+) further verdicts did not fit here", page)[0])
    assert page.count("| **slower** |") == 4000 - left_out
    assert "| b0 |" in page
    assert "| b3999 |" not in page


@pytest.mark.parametrize("limit", [0, 100, 400, 1000, 5000])
def test_no_limit_is_exceeded(limit: int) -> None:
    page = markdown([verdict(impl="ü" * 50, number=n) for n in range(50)], 1, notes=["ü" * 300], limit=limit)
    assert len(page.encode()) <= limit


def test_annotations_are_one_for_an_implementation_and_level() -> None:
    others = [verdict(number=1), verdict("unsure", impl="naive", sentence="moved"), verdict(impl="triton")]
    assert workflow_commands([*ALL, *others]) == [
        "::error title=attn gate::flex: 2 slower, 1 more (2 cells); b0 fwd: "
        "+5.0 %25, and 15 of 15 pairs are slower by more than 1 %25",
        "::error title=attn gate::triton: 1 slower (1 cell); b0 fwd: "
        "+5.0 %25, and 15 of 15 pairs are slower by more than 1 %25",
        "::warning title=attn gate::flex: 1 LOST, 1 unsure (1 cell); b0 fwd: the head does not have this cell",
        "::warning title=attn gate::naive: 1 unsure (1 cell); b0 fwd +5.0 %25: moved",
    ]
    assert workflow_commands([SAME, NEITHER]) == []


def test_a_lost_cell_is_an_error_where_it_fails() -> None:
    assert workflow_commands([LOST])[0].startswith("::warning ")
    assert workflow_commands([LOST], fail_on_lost=True)[0].startswith("::error ")


def test_annotations_are_at_most_ten_and_the_last_one_says_what_is_left() -> None:
    many = [verdict(impl=f"i{number:02}") for number in range(14)]
    assert len(workflow_commands(many[:10])) == 10
    lines = workflow_commands([*many, UNSURE])
    assert len(lines) == 10
    assert lines[-1] == "::error title=attn gate::and 6 more like these; the job's summary has all"


def test_an_annotation_cannot_start_another_command() -> None:
    (line,) = workflow_commands([verdict(impl=EVIL)])
    assert "\n" not in line
    assert "\x1b" not in line
    assert "x%250A" in line


def test_junit_has_a_case_for_each_verdict() -> None:
    root = ElementTree.fromstring(junit(ALL))
    (suite,) = root
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "6", "failures": "2", "errors": "0", "skipped": "2"}
    kinds = [next(iter(case)).tag for case in suite]
    assert kinds == ["failure", "failure", "skipped", "system-out", "skipped", "system-out"]
    slower, more = suite[0], suite[1]
    assert (slower.get("classname"), slower.get("name"), slower.get("time")) == ("flex", "b0 fwd", "0.001050000")
    assert more.get("name") == "b0 fwd peak_bytes"
    assert slower[0].get("message") == "slower (paired): +5.0 %, and 15 of 15 pairs are slower by more than 1 %"
    assert slower[0].text == "1.00 ms -> 1.05 ms +5.0 %"


def test_junit_of_a_lost_cell_is_an_error_where_it_fails() -> None:
    (suite,) = ElementTree.fromstring(junit([LOST, NEITHER], fail_on_lost=True))
    assert [case[0].tag for case in suite] == ["error", "skipped"]
    assert suite.get("errors") == "1"


def test_junit_holds_any_name() -> None:
    text = junit([verdict(impl=EVIL + "\ud800\x00")])
    (suite,) = ElementTree.fromstring(text.encode("utf-8"))
    assert "<i>" in str(suite[0].get("classname"))


def test_the_json_has_every_verdict_and_the_thresholds() -> None:
    data = json.loads(json.dumps(document(ALL, Thresholds(), 1, base="a.json", pairs=15), allow_nan=False))
    assert (data["schema"], data["base"], data["pairs"], data["exit_code"]) == (2, "a.json", 15, 1)
    assert [item["metric"] for item in data["verdicts"]] == ["time", "peak_bytes", "time", "time", "time", "time"]
    assert data["thresholds"]["metrics"]["peak_bytes"]["floor"] == 65536
    assert data["verdicts"][0]["ratio"] == pytest.approx(1.05)
