"""The journal as a library: what was appended comes back, a cut last line is left out, other damage is refused."""

from __future__ import annotations

import gc
import json
import os
import tracemalloc
from pathlib import Path

import pytest

from pytest_attn.perf.journal import Header, Journal, count_cells, read_journal, read_json
from pytest_attn.perf.measure import Measured
from pytest_attn.perf.record import BadRun
from tests.tool.gate_runs import LARGE, MACHINE, record, run_of, write_run

HEADER = Header(MACHINE, "events/1", "smoke", "1/4", {"torch": "2.13.0"})
QUICK = Measured(record(1e-3), (1e-3, 0.9e-3, 1.1e-3))
SLOW = Measured(record(2.0, problem=LARGE), (2.0, 2.01))
OOM = Measured(record(None, impl="other", status="oom", reason="out of memory: asked for 8.00 GiB"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    journal = Journal.create(tmp_path / "run.json.journal", HEADER, [QUICK])
    journal.append(SLOW)
    journal.append(OOM)
    journal.close()
    return journal.path


def test_what_was_appended_comes_back(path: Path) -> None:
    assert read_journal(path) == (HEADER, [QUICK, SLOW, OOM])
    assert count_cells(path) == 3
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_record_is_in_the_file_before_the_journal_is_closed(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal", HEADER)
    journal.append(QUICK)
    assert read_journal(tmp_path / "journal")[1] == [QUICK]
    journal.close()


def test_every_cut_keeps_the_whole_lines_and_can_be_continued(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    whole = path.read_bytes()
    for length in range(len(lines[0]), len(whole), 41):
        path.write_bytes(whole[:length])
        kept = [QUICK, SLOW, OOM][: whole[:length].count(b"\n") - 1]
        assert read_journal(path) == (HEADER, kept)
        journal = Journal(path)
        journal.append(OOM)
        journal.close()
        assert read_journal(path) == (HEADER, [*kept, OOM])


NO_HEADER = "{path} is not a journal: its first line is missing"


DAMAGE: dict[str, tuple[list[int | bytes], str]] = {
    "empty": ([], NO_HEADER),
    "cut header": ([b'{"schema":1,'], NO_HEADER),
    "cut inside": ([0, b'{"record":{"sch\n', 2], "{path} is damaged in line 2: JSONDecodeError: "),
    "zeros": ([0, b"\0\0\0\n"], "{path} is damaged in line 2: JSONDecodeError: "),
    "bytes": ([0, b"\xff\n"], "{path} is damaged in line 2: UnicodeDecodeError: "),
    "no object": ([0, b"3\n"], "{path} is damaged in line 2: TypeError: "),
    "no record": ([0, b'{"record":3,"durations":[]}\n'], "{path} is damaged in line 2: AttributeError: "),
    "no durations": ([0, b'{"record":{}}\n'], "{path} is damaged in line 2: KeyError: 'durations'"),
    "other record": ([0, b'{"record":{"schema":7},"durations":[]}\n'], "{path}, line 2: a record has schema 7"),
    "list": ([b"[]\n"], "{path} is damaged in line 1: AttributeError: "),
    "other schema": ([b'{"schema":7}\n'], "{path}, line 1: schema 7; this version reads 1"),
    "no header": ([1, 2], "{path}, line 1: schema None; this version reads 1"),
}


@pytest.mark.parametrize(("lines", "sentence"), DAMAGE.values(), ids=DAMAGE)
def test_other_damage_is_one_sentence(path: Path, lines: list[int | bytes], sentence: str) -> None:
    good = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(good[line] if isinstance(line, int) else line for line in lines))
    with pytest.raises(BadRun) as refused:
        read_journal(path)
    assert str(refused.value).startswith(sentence.format(path=path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("duration", [-1.0, 0.0, float("nan"), float("inf")])
def test_a_duration_that_is_none_is_refused(tmp_path: Path, duration: float) -> None:
    Journal.create(tmp_path / "journal", HEADER, [Measured(QUICK.record, (duration,))]).close()
    with pytest.raises(BadRun, match=r"journal is damaged in line 2: ValueError: a duration is not positive and fin"):
        read_journal(tmp_path / "journal")


def test_a_missing_file(tmp_path: Path) -> None:
    assert count_cells(tmp_path / "gone") == 0
    with pytest.raises(BadRun, match=r"^cannot read .*gone: No such file or directory$"):
        read_journal(tmp_path / "gone")


def test_the_disk_is_waited_for_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter((100.0, 100.1, 100.9, 101.2, 101.9, 102.1, 102.3))
    synced: list[int] = []
    monkeypatch.setattr("pytest_attn.perf.journal.time.monotonic", lambda: next(seconds))
    journal = Journal.create(tmp_path / "journal", HEADER)
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(count_cells(journal.path)))
    for _ in range(6):
        journal.append(QUICK)
    journal.close()
    assert synced == [3, 6]  # at 101.2 and at 102.3


def test_ten_thousand_records_take_no_memory_and_a_line_each(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal", HEADER)
    journal.append(QUICK)
    size = journal.path.stat().st_size
    tracemalloc.start()
    for _ in range(9_999):
        journal.append(QUICK)
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    journal.close()
    assert kept < 100_000
    line = (journal.path.stat().st_size - size) / 9_999
    assert line == size - len(json.dumps(HEADER.to_dict(), separators=(",", ":"))) - 1
    assert count_cells(journal.path) == 10_000


def test_the_json_of_a_run_reads_as_a_journal(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.json", run_of(QUICK.record, OOM.record, shard="1/4"))
    data = json.loads(path.read_text())
    data["benchmarks"] = [{"stats": {"data": []}}, data["benchmarks"][0] | {"stats": {"data": QUICK.durations}}]
    path.write_text(json.dumps(data))
    assert read_json(path) == (HEADER, [QUICK, OOM])


def test_a_json_without_durations_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.json", run_of(QUICK.record))
    with pytest.raises(BadRun, match=r"run.json lacks the durations of a row: KeyError: 'stats'$"):
        read_json(path)
