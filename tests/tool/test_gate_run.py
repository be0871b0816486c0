"""``attn gate run`` and ``attn gate noop``: which processes run, what becomes of those that fail, what CI reads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

from pytest_attn.cli import main
from pytest_attn.gate import history
from tests.tool.gate_repo import KERNELS, SETTINGS, commit, git, repository, stand_in, traced
from tests.tool.nested import QUICK_CONTRACT, ROOT


@pytest.fixture(autouse=True)
def in_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a stand-in for pytest, which is also the working directory."""
    repo = stand_in(tmp_path / "repo")
    monkeypatch.chdir(repo)
    monkeypatch.setenv("GATE_TRACE", str(tmp_path / "trace"))
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GATE_PLAN"):
        monkeypatch.delenv(name, raising=False)
    return repo


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The last line on standard error, without the name of the command."""
        return self.err.splitlines()[-1].removeprefix("attn gate: ")


class Gate:
    """Runs the command and returns what it said; ``plan`` tells the stand-in what to do where."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.out = tmp_path / "out"
        self.trace = tmp_path / "trace"
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *options: str, plan: dict[str, object] | None = None, command: str = "run") -> Said:
        self._monkeypatch.setenv("GATE_PLAN", json.dumps(plan or {}))
        base = ["--base", "HEAD"] if command == "run" and "--base" not in options else []
        code = main(["gate", command, *base, "--out", str(self.out), *options, "--", "tests"])
        return Said(code, *self._capsys.readouterr())


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Gate:
    return Gate(tmp_path, monkeypatch, capsys)


def slow_down(repo: Path, **factors: float) -> None:
    kernels = {name: seconds * factors.get(name, 1) for name, seconds in KERNELS.items()}
    (repo / "kernels.json").write_text(json.dumps(kernels))


def test_the_same_passes_in_turns_and_each_pair_has_its_own_order_of_cells(gate: Gate) -> None:
    said = gate()
    assert said.code == 0
    assert said.out.splitlines()[-1] == "attn gate: 2 cells: 0 slower, 2 same: ok"
    processes = traced(gate.trace)
    assert [side for side, *_ in processes] == ["base", "head", "head", "base", "base", "head"]
    seeds = [seed for _, seed, *_ in processes]
    assert seeds[0::2] == seeds[1::2], "one order inside a pair"
    assert len(set(seeds)) == 3
    assert {last for *_, last, _ in processes} == {"tests"}
    assert "pair 3/3 AB, head, 0:0" in said.err, "the time left"


def test_each_side_runs_in_its_own_checkout_and_none_is_left(gate: Gate, in_a_repository: Path) -> None:
    git(in_a_repository, "branch", "other")
    base = git(in_a_repository, "rev-parse", "HEAD")
    commit(in_a_repository, {"kernels.json": json.dumps({"one": 1e-4, "two": 2e-4})})
    said = gate("--base", "other", "--head", "main")
    assert said.code == 0
    assert "2 faster" in said.out
    folders = {side: folder for side, _, _, folder, *_ in traced(gate.trace)}
    assert folders["base"] != folders["head"] != str(in_a_repository)
    assert len(git(in_a_repository, "worktree", "list").splitlines()) == 1
    assert json.loads((gate.out / "verdicts.json").read_text())["base"] == base


def test_what_is_slower_is_measured_again_alone_and_then_fails(gate: Gate, in_a_repository: Path) -> None:
    slow_down(in_a_repository, two=2.0)
    said = gate()
    assert said.code == 1
    assert said.out.splitlines()[-1] == "attn gate: 2 cells: 1 slower, 1 same: FAIL"
    listed = [listed for _, _, listed, *_ in traced(gate.trace)]
    assert listed == [None] * 6 + [["two"]] * 6


def test_what_is_slower_once_only_is_unsure(gate: Gate) -> None:
    said = gate(plan={"two-head-first": 2.0})
    assert said.code == 0
    assert "1 unsure" in said.out
    assert len(traced(gate.trace)) == 12


def test_with_trace_first_one_run_of_the_first_pair_stands_for_all_later_ones(
    gate: Gate, in_a_repository: Path
) -> None:
    slow_down(in_a_repository, two=2)
    assert gate("--trace", "first").code == 1
    traced_by = [path for *_, path in traced(gate.trace)]
    assert traced_by[:2] == [None, None]
    assert set(traced_by[2:]) == {str(gate.out / "first" / "pair-01" / "1" / "base.json")}
    assert len(traced_by) == 12, "two stages of three pairs"


def test_a_continued_gate_takes_the_trace_of_its_first_part(gate: Gate) -> None:
    assert gate("--trace", "first", plan={"head-first-2": "usage"}).code == 2
    assert gate("--trace", "first").code == 0
    (last,) = {path for *_, path in traced(gate.trace)[-4:]}
    assert last == str(gate.out / "first" / "pair-01" / "1" / "base.json")
    assert "another trace (first -> every)" in gate().sentence


def test_a_control_is_measured_again_with_what_it_controls(gate: Gate, in_a_repository: Path) -> None:
    slow_down(in_a_repository, two=2.0)
    assert gate("--control", "one").code == 1
    assert traced(gate.trace)[-1][2] == ["one", "two"]


def test_a_killed_process_drops_its_pair_which_is_repeated(gate: Gate) -> None:
    said = gate(plan={"base-first-2-1": "killed"})
    assert said.code == 0
    assert "pair 2/3 dropped and measured again: the base's process ended with SIGKILL" in said.err
    assert [side for side, seed, *_ in traced(gate.trace) if seed == "first-2"] == ["head", "base"] * 2
    assert (gate.out / "first" / "pair-02" / "1" / "head.json").is_file(), "what had finished is kept"


def test_a_result_that_is_cut_short_is_measured_again(gate: Gate) -> None:
    said = gate(plan={"head-first-1-1": "truncated"})
    assert said.code == 0
    assert "was cut short" in said.err


def test_a_process_that_always_dies_is_one_sentence_and_code_2(gate: Gate) -> None:
    said = gate(plan={"head-first-1": "killed"})
    assert said.code == 2
    assert said.sentence.startswith("the head's process ended with SIGKILL, in each of 3 attempts at pair 1")


def test_a_run_that_ended_is_continued(gate: Gate) -> None:
    assert gate(plan={"head-first-2": "usage"}).code == 2
    (gate.out / "first" / "pair-03" / "1").mkdir(parents=True)  # of an attempt that was killed at once
    gate.trace.unlink()
    said = gate()
    assert said.code == 0
    assert "1 pair of 3 taken from" in said.err
    assert [seed for _, seed, *_ in traced(gate.trace)] == ["first-2"] * 2 + ["first-3"] * 2


def test_a_kept_result_that_is_truncated_is_measured_again(gate: Gate) -> None:
    assert gate().code == 0
    kept = gate.out / "first" / "pair-02" / "1" / "head.json"
    kept.write_text(kept.read_text()[:100])
    gate.trace.unlink()
    assert gate().code == 0
    assert [seed for _, seed, *_ in traced(gate.trace)] == ["first-2"] * 2


def test_a_folder_of_another_gate_is_refused(gate: Gate, in_a_repository: Path) -> None:
    assert gate().code == 0
    slow_down(in_a_repository, two=2.0)
    said = gate()
    assert said.code == 2
    assert "holds a gate with another head" in said.sentence
    (gate.out / "gate.json").write_text("{")
    assert "gate.json is damaged" in gate().sentence


def test_a_folder_of_something_else_is_left_alone(gate: Gate) -> None:
    gate.out.mkdir()
    (gate.out / "thesis.txt").write_text("chapter one")
    said = gate()
    assert said.code == 2
    assert "holds something else than a gate's results" in said.sentence


def test_a_base_that_does_not_import_is_one_sentence_with_the_tail_of_its_log(
    gate: Gate, in_a_repository: Path
) -> None:
    working = (in_a_repository / "pytest.py").read_text()
    broken = commit(in_a_repository, {"pytest.py": "import does_not_exist\n"})
    commit(in_a_repository, {"pytest.py": working})
    said = gate("--base", broken)
    assert said.code == 2
    assert said.out == ""
    assert said.sentence == (
        f"the base ({broken[:12]}) cannot be measured: ModuleNotFoundError: No module named 'does_not_exist'"
    )
    assert "  import does_not_exist" in said.err


def test_a_base_that_does_not_build_is_one_sentence(gate: Gate) -> None:
    said = gate("--setup", "echo nvcc fatal; exit 7")
    assert said.code == 2
    assert "  nvcc fatal\n" in said.err
    assert said.sentence.startswith("the base's setup, 'echo nvcc fatal; exit 7', ended with exit code 7")


def test_the_setup_runs_in_each_checkout(gate: Gate, in_a_repository: Path) -> None:
    assert gate("--setup", 'pwd >> "$GATE_TRACE.setup"').code == 0
    base, head = Path(f"{gate.trace}.setup").read_text().split()
    assert base != head == str(in_a_repository)


def test_both_sides_are_measured_by_the_package_that_runs_the_gate(gate: Gate, in_a_repository: Path) -> None:
    base = commit(in_a_repository, {"pytest_attn/__init__.py": "raise ImportError('an older package')\n"})
    git(in_a_repository, "rm", "-q", "-r", "pytest_attn")
    commit(in_a_repository, {})
    assert gate("--base", base).code == 0
    said = gate("--base", base, "--harness", "own", "--out", f"{gate.out}-own")
    assert said.code == 2
    assert said.sentence.endswith("cannot be measured: ImportError: an older package")


def test_a_base_that_is_no_commit_is_one_sentence(gate: Gate) -> None:
    assert gate("--base", "v9").sentence.startswith("'v9' names no commit of")


def test_an_implementation_that_vanished_is_loud_and_can_be_made_to_fail(gate: Gate, in_a_repository: Path) -> None:
    (in_a_repository / "kernels.json").write_text(json.dumps({"one": 1e-3}))
    said = gate()
    assert said.code == 0
    assert "1 LOST (measured in base, not in head)" in said.out
    assert gate("--fail-on-lost").code == 1


def test_a_side_that_measures_nothing_ends_the_gate_at_once(gate: Gate, in_a_repository: Path) -> None:
    (in_a_repository / "kernels.json").write_text("{}")
    said = gate()
    assert said.code == 2
    assert said.sentence.endswith("measured nothing: no cell")
    assert len(traced(gate.trace)) == 2


def test_a_working_tree_that_changes_meanwhile_is_refused(gate: Gate) -> None:
    said = gate(plan={"head-first-2": "edit"})
    assert said.code == 2
    assert said.sentence.startswith("the working tree changed while it was measured")


def test_a_full_disk_is_one_sentence(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gate("--json", "/dev/full").sentence == "cannot write /dev/full: No space left on device"
    full = type("Usage", (), {"free": 0})
    monkeypatch.setattr("pytest_attn.gate.process.shutil.disk_usage", lambda path: full)
    (gate.out / "first" / "pair-01" / "1" / "head.json").unlink()
    said = gate(plan={"head-first-1": "killed"})
    assert said.code == 2
    assert said.sentence.startswith("the disk of ")


def test_too_few_pairs_are_refused_before_anything_runs(gate: Gate) -> None:
    assert gate("--pairs", "1").sentence == "1 pair would leave every cell unsure: min_pairs is 2"
    assert not gate.trace.exists()


@pytest.mark.parametrize("option", ["--json", "--junit", "--markdown", "--history"])
def test_an_output_that_could_not_be_written_is_refused_before_anything_runs(gate: Gate, option: str) -> None:
    said = gate(option, "kernels.json/in/here.txt")
    assert said.code == 2
    assert said.sentence == f"{option} kernels.json/in/here.txt: cannot make its folder: Not a directory"
    assert not gate.trace.exists()


@pytest.mark.parametrize("command", [["run", "--base", "HEAD"], ["noop"]])
def test_a_gate_of_nothing_is_refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", *command]) == 2
    assert capsys.readouterr().err.startswith("attn gate: nothing is named to measure; give pytest's arguments after")
    assert not Path("attn-gate").exists()


def test_a_commit_against_itself_is_said_to_be_noise(gate: Gate, in_a_repository: Path) -> None:
    note = "note: base and head are the same commit"
    assert note in gate().out
    (in_a_repository / "kernels.json").write_text(json.dumps(KERNELS, indent=1))
    gate.out = gate.out.with_name("edited")
    assert note not in gate().out


def test_ended_by_a_signal_it_ends_the_process_that_measures(gate: Gate, in_a_repository: Path) -> None:
    command = [sys.executable, "-m", "pytest_attn.cli", "gate", "run", "--base", "HEAD", "--out", str(gate.out)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "GATE_PLAN": '{"base-first-2": "hang"}'}
    running = subprocess.Popen([*command, "--", "tests"], env=environment, stderr=subprocess.PIPE, text=True)
    child = gate.trace.with_suffix(".pid")
    deadline = time.monotonic() + 300
    while not (child.exists() and child.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 130
    assert err.endswith("attn gate: interrupted\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int(child.read_text()), 0)
    gate.trace.unlink()
    assert gate().code == 0, "the worktree that it left is taken up"
    assert [seed for _, seed, *_ in traced(gate.trace)] == ["first-2"] * 2 + ["first-3"] * 2


def test_every_gated_run_goes_into_the_history_once(gate: Gate, tmp_path: Path) -> None:
    file = tmp_path / "new" / "history.sqlite"
    assert gate("--history", str(file)).code == 0
    assert gate("--history", str(file)).code == 0
    ((entry, cells),) = history.entries(file)
    assert (entry.kind, entry.exit_code, cells) == ("run", 0, 2)
    assert {one.key[0]: one.points[0].seconds for one in history.series(file)} == KERNELS


def test_noop_publishes_the_noise_of_each_cell_and_passes(gate: Gate, in_a_repository: Path) -> None:
    said = gate(command="noop", plan={"two-head-first": 1.1})
    assert said.code == 0
    noise = json.loads((gate.out / "noise.json").read_text())
    assert [cell["impl"] for cell in noise["cells"]] == ["two", "one"], "the noisiest first"
    assert noise["cells"][0]["median"] == pytest.approx(0.0953, abs=1e-4)
    assert noise["cells"][1]["worst_pair"] == 0
    assert said.out.splitlines()[0].startswith("implementation")
    assert {folder for _, _, _, folder, *_ in traced(gate.trace)} == {str(in_a_repository)}


def test_the_noise_that_a_noop_published_raises_the_threshold_of_its_cells(gate: Gate, in_a_repository: Path) -> None:
    assert gate(command="noop", plan={"two-head-first": 1.2}).code == 0
    gate.out.rename(gate.out.with_name("noop"))
    floor = str(gate.out.with_name("noop") / "noise.json")
    slow_down(in_a_repository, two=1.5)
    said = gate("--noise", floor)
    assert said.code == 0, "three times 20 % is more than half as much again"
    assert "note: the noise floor raises the threshold of 1 of 2 cells, up to 72.8 %" in said.out
    verdicts = json.loads((gate.out / "verdicts.json").read_text())
    assert verdicts["thresholds"]["noise"].keys() >= {f"two {verdicts['verdicts'][0]['problem_id']} fwd"}
    assert {each["impl"]: round(each["threshold"], 3) for each in verdicts["verdicts"]} == {"one": 0.3, "two": 0.728}
    assert gate().code == 1, "without the floor the same pairs fail"


def test_noise_of_another_machine_ends_the_gate_after_one_process(gate: Gate, tmp_path: Path) -> None:
    floor = tmp_path / "noise.json"
    floor.write_text(json.dumps({"schema": 2, "machine": {"device": "A100"}, "cells": []}))
    said = gate("--noise", str(floor))
    assert (said.code, len(traced(gate.trace))) == (2, 1)
    assert said.sentence.startswith(f"the noise of {floor} is another machine's (device: A100 -> a CPU")


def test_noop_fails_when_a_cell_alarms(gate: Gate) -> None:
    said = gate(command="noop", plan={"two-head-first": 2.0, "two-head-again": 2.0})
    assert said.code == 1
    assert "1 slower" in said.out


PERF_REPO = {
    "quick_contract.py": QUICK_CONTRACT,
    "conftest.py": 'pytest_plugins = ["quick_contract"]\n',
    "mykernels.py": """
import time

from torch.nn.functional import scaled_dot_product_attention

SECONDS = 0.01

def steady(q, k, v):
    time.sleep(0.01)
    return scaled_dot_product_attention(q, k, v)

def mine(q, k, v):
    time.sleep(SECONDS)
    return scaled_dot_product_attention(q, k, v)
""",
    "tiny.toml": '[[problem]]\nbatch = 1\nheads = 4\nseq = 64\nhead_dim = 32\ndtype = "fp32"\nmask = "full"\n',
}


def test_a_planted_slowdown_turns_ci_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the real pytest and torch: a branch whose kernel takes three times as long.

    It sleeps: a burst of other work on the machine outlasts rounds of microseconds, and makes the steady one slower.
    """
    test = (ROOT / "tests" / "perf" / "test_perf.py").read_text()
    wide = SETTINGS.replace('"30%"', '"100%"')  # on a busy CI machine two pairs moved by a third
    repo = repository(tmp_path / "real", {**PERF_REPO, "tests/test_perf.py": test, "pyproject.toml": wide})
    git(repo, "checkout", "-q", "-b", "slower")
    commit(repo, {"mykernels.py": PERF_REPO["mykernels.py"].replace("SECONDS = 0.01", "SECONDS = 0.03")})
    monkeypatch.chdir(repo)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    kernels = ["--attn-impl", "mykernels:mine", "--attn-impl", "mykernels:steady"]
    arguments = ["--base", "main", "--pairs", "2", "--out", str(tmp_path / "out")]
    measured = ["tests", *kernels, "--attn-grid", "tiny.toml", "--attn-direction", "fwd", "--attn-device", "cpu"]
    assert main(["gate", "run", *arguments, "--", *measured]) == 1
    out = capsys.readouterr().out
    errors = [line for line in out.splitlines() if line.startswith("::error")]
    assert len(errors) == 1
    assert "mykernels:mine" in errors[0]
    assert "**slower** | mykernels:mine" in (tmp_path / "summary.md").read_text()
    cases = ElementTree.parse(tmp_path / "out" / "junit.xml").getroot().iter("testcase")
    assert [case.get("classname") for case in cases if case.find("failure") is not None] == ["mykernels:mine"]
    assert git(repo, "status", "--porcelain", "--", "*.py") == "", "the tree is as it was"
