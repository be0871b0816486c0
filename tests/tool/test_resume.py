"""A timed run that was killed or interrupted: what is left of it, and how it is continued."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cpuinfo
import pytest
from pytest_benchmark.session import BenchmarkSession

from pytest_attn.perf.journal import read_journal
from pytest_attn.perf.record import load_run
from tests.tool.nested import ROOT, lay_out, run, said
from tests.tool.nested import torch_is_whole as torch_is_whole

pytest_plugins = ["pytester"]

# Each call is a line in `calls`, so that a test sees what was measured again; `die` holds what to do, and when.
MORTAL = """
import os, signal
from pathlib import Path
from mykernels import right

def mortal(q, k, v, causal=False):
    with open("calls", "a") as file:
        file.write("causal\\n" if causal else "full\\n")
    if causal and Path("die").exists():
        os.kill(os.getpid(), int(Path("die").read_text()))
    return right(q, k, v, causal)
"""
FULL, CAUSAL = "b1-h2-kv2-q16-k16-d8-fp32-full", "b1-h2-kv2-q16-k16-d8-fp32-causal"
OPTIONS = ["-m", "perf", "--attn-device=cpu", "--attn-grid=tiny.toml", "--attn-direction=fwd", "--attn-impl=naive"]
WHOLE = [*OPTIONS, "--attn-impl=mymortal:mortal", "--benchmark-json=run.json"]
EVERY_CELL = {(impl, problem, "fwd") for impl in ("naive", "mymortal:mortal") for problem in (FULL, CAUSAL)}
SIGKILL, SIGINT = 9, 2


@pytest.fixture(autouse=True)
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(cpuinfo, "get_cpu_info", dict)  # pytest-benchmark's takes a second a run
    lay_out(pytester, "perf")
    (pytester.path / "mymortal.py").write_text(MORTAL)
    return pytester.path


def stopped_by(folder: Path, signal: int) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own, which ends in the implementation's second problem, the last of two."""
    (folder / "die").write_text(str(signal))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *WHOLE]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    (folder / "die").unlink()
    (folder / "calls").unlink()
    return done


def stopped_by_failure(pytester: pytest.Pytester) -> list[str]:
    """Run in this process until the second of four cells fails; return the options."""
    options = [*OPTIONS, "--attn-impl=mykernels:raising", "--benchmark-json=run.json"]
    run(pytester, *options, "-x").assert_outcomes(passed=1, failed=1)
    return options


def journal_of(folder: Path) -> Path:
    return folder / "run.json.journal"


def rows(folder: Path) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads((folder / "run.json").read_text())["benchmarks"]}


def test_a_killed_run_resumes(pytester: pytest.Pytester, folder: Path) -> None:
    assert stopped_by(folder, SIGKILL).returncode == -SIGKILL
    assert not (folder / "run.json").exists()
    _, before = read_journal(journal_of(folder))
    assert {("naive", FULL, "fwd"), ("mymortal:mortal", FULL, "fwd")} <= {each.record.key for each in before}
    result = run(pytester, *WHOLE, "--attn-resume")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines([f"attn: resumed {len(before)} cells from run.json.journal"])
    assert set((folder / "calls").read_text().split()) == {"causal"}
    found = {record.key: record for record in load_run(folder / "run.json").records}
    assert set(found) == EVERY_CELL
    for measured in before:
        assert found[measured.record.key] == measured.record
        row = rows(folder)[f"test_perf[{'-'.join(measured.record.key)}]"]
        assert tuple(row["stats"]["data"]) == measured.durations
    assert not journal_of(folder).exists()


def test_progress_shows_the_numbers_of_before(pytester: pytest.Pytester, folder: Path) -> None:
    def numbers(lines: list[str]) -> dict[str, list[str]]:
        """The words behind a cell's name: its time, its speed and its memory."""
        cells = [line.split("] ", 1)[1].split() for line in lines if line.startswith("[")]
        return {" ".join(words[:3]): words[3:] for words in cells if words[3:]}

    stopped = numbers(stopped_by(folder, SIGKILL).stdout.splitlines())
    assert len(stopped) >= 2
    resumed = numbers(run(pytester, *WHOLE, "--attn-resume").outlines)
    assert {cell: resumed[cell] for cell in stopped} == stopped


def test_ctrl_c_writes_a_json_and_a_resume_completes_it(pytester: pytest.Pytester, folder: Path) -> None:
    done = stopped_by(folder, SIGINT)
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout + done.stderr
    assert " left: add --attn-resume" in done.stdout
    assert {("naive", FULL, "fwd"), ("mymortal:mortal", FULL, "fwd")} <= {
        record.key for record in load_run(folder / "run.json").records
    }
    result = run(pytester, *WHOLE, "--attn-resume")
    result.assert_outcomes(passed=4)
    assert {record.key for record in load_run(folder / "run.json").records} == EVERY_CELL
    assert set((folder / "calls").read_text().split()) == {"causal"}
    assert not journal_of(folder).exists()


def test_without_a_journal_the_json_is_continued(pytester: pytest.Pytester, folder: Path) -> None:
    stopped_by(folder, SIGINT)
    journal_of(folder).unlink()
    before = rows(folder)
    assert before
    result = run(pytester, *WHOLE, "--attn-resume")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines([f"attn: resumed {len(before)} cells from run.json"])
    assert set((folder / "calls").read_text().split()) == {"causal"}
    after = rows(folder)
    assert len(after) == 4 > len(before) >= 2
    for name, row in before.items():
        assert after[name]["stats"]["data"] == row["stats"]["data"]


def test_what_has_no_time_is_resumed_too(pytester: pytest.Pytester, folder: Path) -> None:
    options = [*WHOLE, "--attn-impl=mykernels:full_card", "--attn-impl=mykernels:raising"]
    run(pytester, *options).assert_outcomes(passed=4, skipped=2, failed=2)
    (folder / "calls").unlink()
    result = run(pytester, *options, "--attn-resume")
    result.assert_outcomes(passed=4, skipped=2, failed=2)
    result.stdout.fnmatch_lines(["attn: resumed 8 cells from run.json"])
    assert not (folder / "calls").exists()
    assert load_run(folder / "run.json").statuses() == {"ok": 4, "oom": 2, "error": 2}


def test_nothing_to_resume_is_said(pytester: pytest.Pytester, folder: Path) -> None:
    result = run(pytester, *WHOLE, "--attn-resume")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["attn: nothing to resume, neither run.json.journal nor run.json is there"])


def test_an_unfinished_run_is_not_lost_by_forgetting_the_option(pytester: pytest.Pytester, folder: Path) -> None:
    options = stopped_by_failure(pytester)
    before = journal_of(folder).read_bytes()
    result = run(pytester, *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert (
        "run.json.journal holds 2 cells of a run that did not finish: continue it with --attn-resume, or delete the "
        "file to start over" in said(result)
    )
    assert journal_of(folder).read_bytes() == before
    journal_of(folder).unlink()
    run(pytester, *options).assert_outcomes(passed=2, failed=2)
    assert not journal_of(folder).exists()


@pytest.mark.parametrize(
    ("changes", "option", "sentence"),
    [
        ({"grid": "lab5"}, None, "another grid (lab5 -> tiny.toml)"),
        ({"contract": "wall/0"}, None, "another contract (wall/0 -> "),
        ({"machine": {"device": "abacus", "device_type": "cpu"}}, None, "another machine (capability: None -> "),
        ({"environment": {}}, None, "another environment ("),
        ({}, "--attn-shard=1/2", "another shard (None -> 1/2)"),
        ({"schema": 0}, None, "run.json.journal, line 1: schema 0; this version reads 1"),
        ({"machine": 3}, None, "run.json.journal is damaged in line 1: TypeError: "),
        ({}, "--attn-direction=bwd", "holds 2 cells that this command does not time, such as naive "),
        (
            {},
            "--deselect=test_perf.py::test_perf[naive",
            "holds 1 cell that this command does not time, such as naive ",
        ),
    ],
)
def test_another_run_is_refused(
    pytester: pytest.Pytester, folder: Path, changes: dict[str, object], option: str | None, sentence: str
) -> None:
    options = stopped_by_failure(pytester)
    header, *lines = journal_of(folder).read_text().splitlines()
    journal_of(folder).write_text("\n".join([json.dumps(json.loads(header) | changes), *lines, ""]))
    before = journal_of(folder).read_bytes()
    result = run(pytester, *options, *([] if option is None else [option]), "--attn-resume")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert sentence in said(result)
    assert journal_of(folder).read_bytes() == before


def test_a_json_that_is_no_run_is_refused(pytester: pytest.Pytester, folder: Path) -> None:
    (folder / "run.json").write_text("{}")
    result = run(pytester, *WHOLE, "--attn-resume")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--attn-resume: run.json has no attention results" in said(result)


def test_resume_needs_a_file(pytester: pytest.Pytester) -> None:
    result = run(pytester, *OPTIONS, "--attn-resume")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--attn-resume continues a file: give the --benchmark-json=FILE of the run to continue" in said(result)


def test_a_json_that_could_not_be_written_leaves_the_journal(pytester: pytest.Pytester, folder: Path) -> None:
    # The run's own last act: the JSON's path becomes a folder.
    (folder / "test_z.py").write_text("import os\n\ndef test_z():\n    os.mkdir('run.json')\n")
    options = [option for option in WHOLE if option not in ("-m", "perf")]
    run(pytester, *options, "-m", "perf or not perf")
    _, measured = read_journal(journal_of(folder))
    assert {each.record.key for each in measured} == EVERY_CELL


@pytest.mark.parametrize("option", ["--collect-only", "--benchmark-disable", "--benchmark-skip"])
def test_a_run_that_writes_nothing_has_no_journal(pytester: pytest.Pytester, folder: Path, option: str) -> None:
    run(pytester, *WHOLE, option)
    assert not journal_of(folder).exists()


def test_a_full_disk_ends_the_run_in_one_sentence(
    pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(journal: object, measured: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("pytest_attn.perf.journal.Journal.append", full)
    result = run(pytester, *WHOLE)
    assert "run.json.journal: No space left on device" in said(result)


@pytest.mark.parametrize("refused", [["--attn-cells=gone"], ["--attn-cells=cells"]])
def test_a_refused_run_leaves_the_json_of_an_earlier_one(
    pytester: pytest.Pytester, folder: Path, refused: list[str]
) -> None:
    (folder / "cells").write_text("naive no-such-problem fwd\n")
    assert run(pytester, *WHOLE, *refused).ret == pytest.ExitCode.USAGE_ERROR
    assert not (folder / "run.json").exists()
    run(pytester, *WHOLE).assert_outcomes(passed=4)
    before = (folder / "run.json").read_bytes()
    assert run(pytester, *WHOLE, *refused).ret == pytest.ExitCode.USAGE_ERROR
    assert (folder / "run.json").read_bytes() == before


def test_a_run_stopped_before_its_first_cell_leaves_the_json_of_an_earlier_one(
    pytester: pytest.Pytester, folder: Path
) -> None:
    run(pytester, *WHOLE).assert_outcomes(passed=4)
    before = (folder / "run.json").read_bytes()
    (folder / "test_first.py").write_text("def test_interrupted():\n    raise KeyboardInterrupt\n")
    stopped = pytester.runpytest_subprocess("test_first.py", "test_perf.py", *WHOLE, "-m", "")
    assert stopped.ret == pytest.ExitCode.INTERRUPTED
    assert (folder / "run.json").read_bytes() == before


def test_a_json_that_the_disk_does_not_take_is_said_and_resumed(
    pytester: pytest.Pytester, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: BenchmarkSession, output: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(BenchmarkSession, "save_json", full)
        result = run(pytester, *WHOLE)
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(
        ["cannot write run.json: No space left on device; what was measured is in */run.json.journal: make room, *"]
    )
    assert "Traceback" not in said(result)
    (folder / "calls").unlink()
    run(pytester, *WHOLE, "--attn-resume").assert_outcomes(passed=4)
    assert not (folder / "calls").exists()
