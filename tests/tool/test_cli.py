"""The command ``attn`` as a whole: exit codes, light import, pipes, Ctrl-C; ``list`` and ``report``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import pytest_attn
from attn_impls import Implementation, Registry
from attn_impls.grids import GRIDS
from pytest_attn.cli import COMMANDS, main
from pytest_attn.commands import gate
from pytest_attn.perf.record import Run
from tests.tool.gate_runs import record, run_of, write_run


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pytest-attn {pytest_attn.__version__}\n"


@pytest.mark.parametrize("argv", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith(f"usage: {' '.join(['attn', *argv[:-1]])}")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "attn: the following arguments are required: COMMAND"),
        (["bogus"], "attn: argument COMMAND: invalid choice: 'bogus'"),
        (["gate", "compare", "one.json"], "attn gate compare: the following arguments are required: HEAD.json"),
        (["report"], "attn report: the following arguments are required: RUN.json"),
        (["list", "--device", "tpu"], "attn list: argument --device: invalid choice: 'tpu'"),
        (["list", "--grid", "smoke", "--grids"], "attn list: argument --grids: not allowed with"),
        (["list", "--gri", "smoke"], "--gri"),
        (["doctor", "--wrong"], "attn"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_importing_the_command_is_light() -> None:
    heavy = "{'torch', 'matplotlib', 'pandas', 'jinja2', 'pytest', 'hypothesis'}"
    assert run_python(f"import sys, pytest_attn.cli; print({heavy} & set(sys.modules))").stdout == "set()\n"


def test_the_gate_and_the_grids_need_no_torch(tmp_path: Path) -> None:
    run = str(write_run(tmp_path / "run.json", run_of(record(1e-3))))
    for argv in (["gate", "compare", run, run], ["list", "--grids"], ["list", "--grid", "smoke"]):
        done = run_python(
            f"import sys; sys.modules['torch'] = None\nfrom pytest_attn.cli import main\nsys.exit(main({argv}))"
        )
        assert done.returncode == 0, done.stderr


def test_ctrl_c_is_130_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(gate, "run", interrupt)
    assert main(["gate", "compare", "a", "b"]) == 130
    assert capsys.readouterr().err == "attn gate: interrupted\n"


@pytest.mark.parametrize("argv", [["list", "--grid", "lab5"], ["--help"]])
def test_a_reader_that_leaves_is_no_error(argv: list[str]) -> None:
    # 64 KiB would fit into the pipe's buffer: the reading end must be closed before anything is written.
    # Unbuffered, Python would have nothing left to complain about at exit.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    code = f"import os, sys\nfrom pytest_attn.cli import main\nsys.stdin.readline()\nsys.exit(main({argv}))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=buffered,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.write("go\n")
    process.stdin.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=300) == 141


def test_an_encoding_without_the_character_is_no_crash(tmp_path: Path) -> None:
    old, new = (write_run(tmp_path / f"{t}.json", run_of(record(t, impl="größer"))) for t in (1, 2))
    code = (
        f"import sys\nfrom pytest_attn.cli import main\nsys.exit(main(['gate', 'compare', {str(old)!r}, {str(new)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "gr??er" in done.stdout


# attn list


def test_list_shows_implementations_with_what_they_claim(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    claims, summaries = out.split("\n\n")[:2]
    rows = {line.split()[0]: line.split() for line in claims.splitlines()}
    assert "\nsdpa-math        SDPA's unfused reference path\n" in summaries
    assert rows["naive"][1:5] == ["available", "cpu,cuda", "fp32,bf16,fp16", "1..1024"]
    assert "backward" in rows["naive"][-1]
    assert "  8..256 in multiples of 8  " in out


def test_list_says_why_one_is_missing_and_survives_a_broken_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def boom() -> str | None:
        raise RuntimeError("probe exploded")

    items = [
        Implementation("good", lambda q, k, v, problem: q),
        Implementation("gone", lambda q, k, v, problem: q, probe=lambda: "no compiler"),
        Implementation("bad", lambda q, k, v, problem: q, probe=boom),
        Implementation("absent", lambda q, k, v, problem: q, probe=lambda: "no compiler"),
    ]
    registry = Registry({item.name: item for item in items}, {"theirs": "ImportError: no libfoo"})
    monkeypatch.setattr("attn_impls.discover", lambda: registry)
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines()[1:4]] == [
        ["good", "available"],
        ["gone", "missing"],
        ["bad", "broken"],
    ]
    assert out.splitlines()[-3:] == [
        "gone, absent: missing, no compiler",
        "bad: broken, its probe raised RuntimeError: probe exploded",
        "entry point theirs: broken, ImportError: no libfoo",
    ]


def test_list_of_a_device_leaves_out_what_does_not_run_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--device", "cpu"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert "naive" in names
    assert "flash-attn" not in names


def test_list_of_grids_has_names_counts_and_descriptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--grids"]) == 0
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == list(GRIDS)
    assert ["lab5", "48"] in [row[:2] for row in rows]
    assert all(len(row) == 3 and not row[2].startswith("Return") for row in rows)


def test_list_of_a_grid_has_its_ids_and_flops(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--grid", "hw4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["b4-h1-kv1-q256-k256-d64-fp32-full", "0.067", "0.168"]
    assert lines[-1] == "4 problems"


def test_list_of_a_toml_grid_and_who_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = tmp_path / "mine.toml"
    grid.write_text('[[problem]]\nbatch = 1\nheads = 2\nseq = 64\nhead_dim = 32\ndtype = "fp32"\n')
    assert main(["list", "--grid", str(grid), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("b1-h2-kv2-q64-k64-d32-fp32-full ")
    taken, _, total = lines[1].split()[-3:]
    assert 3 <= int(taken) < int(total)
    assert lines[-1] == "1 problem"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read grid"),
        ("[[problem", "is not TOML"),
        ("x = 1", "must hold tables"),
        ("[[problem]]\nbatch = 1", "heads"),
    ],
)
def test_a_bad_grid_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, said: str
) -> None:
    grid = tmp_path / "mine.toml"
    if text is not None:
        grid.write_text(text)
    assert main(["list", "--grid", str(grid)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("attn list: ")
    assert said in err
    assert err.count("\n") == 1


def test_an_unknown_grid_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--grid", "nope"]) == 2
    err = capsys.readouterr().err
    assert "'nope'" in err
    assert "lab5" in err


# attn report


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Path]]:
    """What the report was asked to write, by a stand-in that writes nothing: the report has tests of its own."""
    calls: list[tuple[list[str], Path]] = []

    def write_report(runs: Sequence[Run], directory: Path, left_out: Sequence[str]) -> Path:
        calls.append(([run.source for run in runs], directory))
        return directory / "index.html"

    monkeypatch.setattr("pytest_attn.report.write_report", write_report)
    return calls


def test_report_prints_where_the_page_is(
    tmp_path: Path, written: list[tuple[list[str], Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(write_run(tmp_path / name, run_of(record(1)))) for name in ("a.json", "b.json")]
    assert main(["report", *runs]) == 0
    assert main(["report", runs[0], "-o", str(tmp_path / "out")]) == 0
    assert written == [(runs, Path("attn-report")), (runs[:1], tmp_path / "out")]
    assert capsys.readouterr().out.splitlines() == ["attn-report/index.html", str(tmp_path / "out" / "index.html")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("", "is empty"),
        ("{", "was cut short"),
        ("{}", "has no attention results"),
        (json.dumps({"benchmarks": [], "attn": {"schema": 7}}), "schema 7"),
        (json.dumps({"benchmarks": [], "attn": run_of().header()}), "holds no records"),
    ],
)
def test_report_refuses_an_unusable_run(
    tmp_path: Path,
    written: list[tuple[list[str], Path]],
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    said: str,
) -> None:
    good, bad = write_run(tmp_path / "good.json", run_of(record(1))), tmp_path / "bad.json"
    if text is not None:
        bad.write_text(text)
    assert main(["report", str(good), str(bad)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("attn report: ")
    assert said in captured.err
    assert "bad.json" in captured.err
    assert captured.err.count("\n") == 1
    assert (captured.out, written) == ("", [])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("time_s", {"median": float("nan"), "p10": 1, "p90": 1, "n": 1}, "is not positive and finite"),
        ("time_s", {"median": 0, "p10": 0, "p90": 0, "n": 1}, "is not positive and finite"),
        ("time_s", {"median": -1, "p10": -1, "p90": -1, "n": 1}, "is not positive and finite"),
        ("status", "great", "status 'great' is not one of"),
        ("problem", None, "cannot be read"),
    ],
)
def test_report_leaves_out_a_record_that_cannot_be_read_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, value: object, said: str
) -> None:
    run = write_run(tmp_path / "a.json", run_of(record(1), record(2, impl="other")))
    data = json.loads(run.read_text())
    data["benchmarks"][1]["extra_info"]["attn"][field] = value
    data["benchmarks"][0]["extra_info"]["attn"]["unknown"] = {"nested": [1, None]}
    run.write_text(json.dumps(data))
    assert main(["report", str(run), "-o", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(f"{run}: 1 of 2 records left out; the first: a record cannot be read: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert '<p class="left-out">' in page
    assert "1 of 2 records left out" in (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    data["benchmarks"] = data["benchmarks"][1:]
    run.write_text(json.dumps(data))
    assert main(["report", str(run), "-o", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


def test_report_without_its_packages_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(write_run(tmp_path / "a.json", run_of(record(1)))), "-o", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("attn report: ")
    assert "pip install 'pytest-attn[report]'" in err
    assert err.count("\n") == 1


def test_report_refuses_two_contracts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = run_of(record(1)), run_of(record(1, contract="wall/1"))
    runs = [str(write_run(tmp_path / f"{n}.json", run)) for n, run in enumerate((one, two))]
    assert main(["report", *runs, "-o", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "events/1" in err
    assert "wall/1" in err
    assert err.count("\n") == 1


def test_report_into_a_file_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a.json", run_of(record(1)))
    assert main(["report", str(run), "-o", str(run)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"attn report: cannot write the report to {run}: ")
    assert err.count("\n") == 1
