"""``attn gate compare``: exit codes, what it prints, what it refuses."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from attn_impls.problem import Direction
from pytest_attn.cli import main
from pytest_attn.perf.record import Run
from tests.tool.gate_runs import LARGE, MACHINE, SMALL, record, run_of, write_run

BASE = run_of(record(1e-3), record(1e-3, problem=LARGE))
SLOWER = run_of(record(2e-3), record(1e-3, problem=LARGE))


def gate(folder: Path, base: Run, head: Run, *options: str) -> int:
    files = (write_run(folder / f"{name}.json", run) for name, run in (("base", base), ("head", head)))
    return main(["gate", "compare", *map(str, files), *options])


def test_the_same_passes_and_is_a_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(tmp_path, BASE, BASE) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "attn gate: 2 cells: 0 slower, 2 same: ok"
    assert lines[-2] == "not shown: 2 the same (-v shows them)"
    assert SMALL.id not in "".join(lines)


def test_verbose_shows_the_same_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(tmp_path, BASE, BASE, "-v") == 0
    out = capsys.readouterr().out
    assert SMALL.id in out
    assert LARGE.id in out
    assert "not shown" not in out


def test_a_slower_cell_fails_and_is_shown_first_in_an_aligned_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate(tmp_path, BASE, SLOWER, "-v") == 1
    lines = capsys.readouterr().out.splitlines()
    header = next(index for index, line in enumerate(lines) if line.startswith("verdict"))
    first, second = lines[header + 1 : header + 3]
    assert first.split()[:2] == ["slower", "naive"]
    assert second.startswith("same ")
    assert "1.00 ms  2.00 ms  +100.0 %" in first
    assert first.index(SMALL.id) == second.index(LARGE.id) == lines[header].index("problem")
    assert lines[-1] == "attn gate: 2 cells: 1 slower, 1 same: FAIL"


def test_faster_and_unsure_pass(tmp_path: Path) -> None:
    assert gate(tmp_path, SLOWER, BASE) == 0
    assert gate(tmp_path, run_of(record(1, 0.5)), run_of(record(1.3, 0.5))) == 0


def test_the_threshold_is_honoured(tmp_path: Path) -> None:
    base, head = run_of(record(1e-3)), run_of(record(1.1e-3))
    assert gate(tmp_path, base, head) == 1
    assert gate(tmp_path, base, head, "--threshold", "20%") == 0
    assert gate(tmp_path, base, head, "--threshold", "0.2") == 0


def test_a_lost_cell_is_loud_and_can_be_made_to_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = run_of(record(1e-3, problem=LARGE), record(None, status="oom", reason="asked for 8.00 GiB"))
    assert gate(tmp_path, BASE, head) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == (
        "attn gate: 2 cells: 0 slower, 1 same, 1 no-data, 1 LOST (measured in base, not in head): ok"
    )
    assert "the head did not: oom, asked for 8.00 GiB" in out
    assert gate(tmp_path, BASE, head, "--fail-on-lost") == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith(": FAIL")


def test_cells_that_neither_side_measured_are_a_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(record(1e-3), record(None, problem=LARGE, status="unsupported", reason="needs q_len == kv_len"))
    assert gate(tmp_path, run, run) == 0
    assert "1 the same and 1 measured by neither side" in capsys.readouterr().out
    assert gate(tmp_path, run, run, "-v") == 0
    assert "needs q_len == kv_len" in capsys.readouterr().out


def test_what_may_explain_a_difference_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = run_of(record(1), implementations={"naive": {"version": "1.0", "missing": None}})
    new = run_of(
        record(1), environment={"torch": "3.0"}, implementations={"naive": {"version": "1.1", "missing": None}}
    )
    assert gate(tmp_path, old, new) == 0
    out = capsys.readouterr().out
    assert "torch: 2.13.0 -> 3.0" in out
    assert "naive: 1.0 -> 1.1" in out
    assert "the weaker form" in out


def test_a_shift_of_everything_is_said_and_changes_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def everything(median: float) -> Run:
        return run_of(*(record(median, impl=impl, direction=d) for impl in ("naive", "flex") for d in Direction))

    assert gate(tmp_path, everything(1e-3), everything(1.3e-3)) == 1
    out = capsys.readouterr().out
    assert "every implementation moved alike, +30.0 %: suspect the machine first" in out
    assert "6 cells: 6 slower: FAIL" in out


def test_the_verdicts_are_written_as_json(tmp_path: Path) -> None:
    target = tmp_path / "new" / "verdicts.json"
    assert gate(tmp_path, BASE, SLOWER, "--json", str(target)) == 1
    data = json.loads(target.read_text())
    assert data["exit_code"] == 1
    assert data["thresholds"]["relative"] == 0.05
    assert [item["verdict"] for item in data["verdicts"]] == ["slower", "same"]
    assert [path.name for path in target.parent.iterdir()] == ["verdicts.json"], "no temporary file stays"


def test_json_that_cannot_be_written_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(tmp_path, BASE, BASE, "--json", str(tmp_path)) == 2
    assert capsys.readouterr().err == f"attn gate: cannot write {tmp_path}: Is a directory\n"


WHOLE = json.dumps({"benchmarks": [], "attn": run_of(record(None, status="oom")).header()})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("", "is empty"),
        (WHOLE[: len(WHOLE) // 2], "was cut short"),
        ("[]", "has no attention results"),
        ('{"benchmarks": []}', "has no attention results"),
        (WHOLE.replace('"schema": 1', '"schema": 99'), "schema 99"),
        (json.dumps({"benchmarks": [], "attn": run_of().header()}), "holds no records"),
        (WHOLE, "no record that is ok"),
        ('{"benchmarks": [{"extra_info": {"attn": 3}}], "attn": {"schema": 1}}', "a record is no JSON object"),
    ],
)
@pytest.mark.parametrize("side", ["base", "head"])
def test_an_unusable_file_is_one_sentence_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, said: str, side: str
) -> None:
    files = {"base": tmp_path / "base.json", "head": tmp_path / "head.json"}
    for path in files.values():
        write_run(path, BASE)
    if text is None:
        files[side].unlink()
    else:
        files[side].write_text(text)
    assert main(["gate", "compare", str(files["base"]), str(files["head"])]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("attn gate: ")
    assert said in captured.err
    assert files[side].name in captured.err


def test_a_file_that_is_not_text_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    assert main(["gate", "compare", str(tmp_path / "x.json"), str(tmp_path / "x.json")]) == 2
    assert "is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (
            run_of(record(1e-3), machine={**MACHINE, "device": "A100"}),
            "machine (device: NVIDIA H100 80GB HBM3 -> A100)",
        ),
        (run_of(record(1e-3, contract="events/2")), "contract (events/1 -> events/2)"),
        (run_of(record(1e-3), grid="lab5"), "grid (smoke -> lab5)"),
        (run_of(record(1e-3, impl="flex")), "no cell in common"),
    ],
)
def test_unlike_runs_are_one_sentence_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], head: Run, said: str
) -> None:
    assert gate(tmp_path, BASE, head) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert said in captured.err


def test_a_bad_threshold_is_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(tmp_path, BASE, BASE, "--threshold", "5") == 2
    assert capsys.readouterr().err == "attn gate: --threshold: '5' is not a share such as 5% or 0.05\n"


def test_benchmarks_of_others_in_the_file_are_left_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "run.json", BASE, noise=[{"name": "test_other", "extra_info": {}}])
    assert main(["gate", "compare", str(tmp_path / "run.json"), str(tmp_path / "run.json")]) == 0


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colour_only_where_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], coloured: bool
) -> None:
    for name, value in ({"NO_COLOR": "", "TERM": "xterm"} | environment).items():
        monkeypatch.setenv(name, value)
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert gate(tmp_path, BASE, SLOWER) == 1
    assert ("\x1b[31mslower" in terminal.getvalue()) is coloured
    assert ("\x1b" in terminal.getvalue()) is coloured


def test_no_colour_in_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(tmp_path, BASE, SLOWER) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_names_from_a_file_cannot_drive_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b[2Jevil\nslower"
    assert gate(tmp_path, run_of(record(1, impl=name)), run_of(record(2, impl=name))) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "?[2Jevil slower" in out
