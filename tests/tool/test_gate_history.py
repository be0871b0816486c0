"""The history of gated runs: kept by several writers, listed, drawn, and searched for steps."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_attn.cli import main
from pytest_attn.gate.history import BadHistory, Entry, Point, Series, append, entries, series, steps
from pytest_attn.gate.verdict import Outcome, Verdict
from tests.tool.nested import ROOT


def verdict(head: float | None, impl: str = "naive", metric: str = "time") -> Verdict:
    return Verdict(impl, "b1-h1", "fwd", Outcome.SAME, "within", "", 1e-3, head, metric=metric)


def entry(number: int, **changes: object) -> Entry:
    fields: dict[str, object] = {
        "token": f"run {number}",
        "taken_at": f"2026-01-{number + 1:02}T00:00:00+00:00",
        "kind": "run",
        "base_commit": f"b{number}",
        "head_commit": f"h{number}",
        "machine": {"device": "H100"},
        "contract": "events/2",
        "grid": "lab5",
        "exit_code": 0,
    }
    return Entry(**(fields | changes))  # type: ignore[arg-type]


def over_time(*values: float) -> Series:
    points = tuple(Point(f"day {i}", f"c{i}", value) for i, value in enumerate(values))
    return Series(("naive", "p", "fwd"), "{}", "events/2", points)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite"


def test_times_come_back_in_order_and_other_metrics_are_left_out(file: Path) -> None:
    append(file, entry(2), [verdict(3e-3), verdict(7.0, metric="peak_bytes")])
    append(file, entry(1), [verdict(2e-3), verdict(None, impl="gone")])
    assert [kept.token for kept, _ in entries(file)] == ["run 1", "run 2"]
    (one,) = series(file)
    assert [(point.commit, point.seconds) for point in one.points] == [("h1", 2e-3), ("h2", 3e-3)]


def test_a_run_that_is_added_again_replaces_itself(file: Path) -> None:
    append(file, entry(1), [verdict(2e-3)])
    append(file, entry(1, exit_code=1), [verdict(4e-3)])
    assert [(kept.exit_code, cells) for kept, cells in entries(file)] == [(1, 1)]
    assert [point.seconds for point in series(file)[0].points] == [4e-3]


def test_machines_and_contracts_are_kept_apart(file: Path) -> None:
    append(file, entry(1), [verdict(2e-3)])
    append(file, entry(2, machine={"device": "A100"}), [verdict(2e-3)])
    append(file, entry(3, contract="kineto/1"), [verdict(2e-3)])
    assert len(series(file)) == 3


def test_a_run_is_written_wholly_or_not_at_all(file: Path) -> None:
    append(file, entry(1), [verdict(2e-3)])
    with pytest.raises(BadHistory, match="UNIQUE"):
        append(file, entry(2), [verdict(2e-3), verdict(2e-3)])
    assert len(entries(file)) == 1


def test_two_jobs_may_write_at_once(file: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.tool.test_gate_history import append, entry, verdict\n"
        "for i in range(10): append(Path(sys.argv[1]), entry(i, token=f'{sys.argv[2]} {i}'), [verdict(1e-3)])"
    )
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(file), name], cwd=ROOT) for name in "ab"]
    assert [job.wait(timeout=120) for job in jobs] == [0, 0]
    assert len(entries(file)) == 20


def test_a_file_of_something_else_is_refused_and_left_as_it_is(file: Path) -> None:
    with sqlite3.connect(file) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = file.read_bytes()
    with pytest.raises(BadHistory, match="is not a history of this version"):
        append(file, entry(1), [verdict(1e-3)])
    assert file.read_bytes() == before
    file.write_text("no database" * 100)
    with pytest.raises(BadHistory, match="not a database"):
        entries(file)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([1, 1, 1, 1, 1.2, 1.2, 1.2], ["c4"]),
        ([1.2, 1.2, 1.2, 1, 1, 1], ["c3"]),
        ([1, 1, 1, 1.3, 1.3, 1.3, 1, 1, 1], ["c3", "c6"]),
        ([1, 1, 1, 5, 1, 1, 1], []),  # one bad night
        ([1, 1, 1, 1.02, 1.02, 1.02], []),  # less than five percent
        ([1, 1, 1, 1.2, 1.2], []),  # not lasting yet
        ([1], []),
    ],
)
def test_a_lasting_change_is_a_step(values: list[float], found: list[str]) -> None:
    assert [step.first for step in steps(over_time(*values))] == found


def test_noise_is_no_step_and_hides_none_that_is_large() -> None:
    draw = random.Random(7)
    false = sum(bool(steps(over_time(*(draw.gauss(1, 0.02) for _ in range(40))))) for _ in range(200))
    assert false <= 2
    for _ in range(50):
        values = [draw.gauss(1 if i < 20 else 1.15, 0.02) for i in range(40)]
        (step,) = steps(over_time(*values))
        assert step.first in ("c19", "c20", "c21")
        assert step.after / step.before == pytest.approx(1.15, abs=0.03)


def test_the_command_lists_shows_and_finds_the_commit(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(8):
        append(file, entry(i, exit_code=int(i == 5)), [verdict(1e-3 if i < 5 else 1.5e-3)])

    def history(*words: str) -> list[str]:
        assert main(["history", *words, "--history", str(file)]) == 0
        return capsys.readouterr().out.splitlines()

    listed = history("list")
    assert len(listed) == 9
    assert listed[6].split()[-1] == "FAIL"
    assert history("show", "naive *") == ["naive b1-h1 fwd on H100, events/2  ▁▁▁▁▁███  1.00 ms to 1.50 ms"]
    _, step = history("steps")
    assert "+50.0 %  h4..h5" in step
    assert history("steps", "--threshold", "60%") == ["no step"]


def test_a_cell_is_drawn(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    append(file, entry(1), [verdict(1e-3)])
    assert main(["history", "show", "*", "--history", str(file), "-o", str(tmp_path / "cell.png")]) == 0
    assert (tmp_path / "cell.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_not_there_is_one_sentence(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "list", "--history", str(file)]) == 2
    assert "is not there" in capsys.readouterr().err
    assert main(["history", "list", "--history", str(file.parent)]) == 2
    assert capsys.readouterr().err.endswith(" is not a file\n")
    file.touch()
    assert main(["history", "list", "--history", str(file)]) == 2
    assert "holds no run yet; `attn gate run --history" in capsys.readouterr().err
    append(file, entry(1), [verdict(1e-3)])
    assert main(["history", "show", "flash *", "--history", str(file)]) == 2
    err = capsys.readouterr().err
    assert "has no cell 'flash *', but such as 'naive b1-h1 fwd'" in err
    assert err.count("\n") == 1
