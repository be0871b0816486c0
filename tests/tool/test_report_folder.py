"""The folder of a report: what is replaced and removed in it, and what of others is left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_attn.report.folder import LIST, write_files

PAGE = b'<!doctype html><meta name="generator" content="pytest-attn">'
FIRST = {"index.html": PAGE, "results.csv": b"a", "figures/old.svg": b"old", "figures/kept.png": b"1"}
SECOND = {"index.html": PAGE, "results.csv": b"b", "figures/kept.png": b"2"}


def held(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != LIST}


def test_figures_that_a_report_no_longer_has_are_removed(tmp_path: Path) -> None:
    write_files(tmp_path, FIRST)
    assert held(tmp_path) == FIRST
    write_files(tmp_path, SECOND)
    assert held(tmp_path) == SECOND
    write_files(tmp_path, FIRST)  # the list is that of the last report
    assert held(tmp_path) == FIRST


def test_what_someone_changed_or_put_there_stays(tmp_path: Path) -> None:
    write_files(tmp_path, FIRST)
    (tmp_path / "figures" / "old.svg").write_bytes(b"edited")
    (tmp_path / "figures" / "mine.svg").write_bytes(b"mine")
    (tmp_path / "notes.txt").write_bytes(b"mine")
    write_files(tmp_path, SECOND)
    assert held(tmp_path) == SECOND | {
        "figures/old.svg": b"edited",
        "figures/mine.svg": b"mine",
        "notes.txt": b"mine",
    }


def test_an_edited_list_removes_nothing_but_figures(tmp_path: Path) -> None:
    folder, outside = tmp_path / "report", tmp_path / "outside.svg"
    outside.write_bytes(b"old")
    write_files(folder, FIRST)
    (folder / "notes.svg").write_bytes(b"old")
    (folder / "figures" / "link.svg").symlink_to(outside)
    digest = json.loads((folder / LIST).read_text())["figures/old.svg"]
    names = ("../outside.svg", str(outside), "figures/../../outside.svg", "notes.svg", "figures/link.svg")
    (folder / LIST).write_text(json.dumps(dict.fromkeys(names, digest)))
    write_files(folder, SECOND)
    assert outside.exists()
    assert (folder / "notes.svg").exists()
    assert (folder / "figures" / "link.svg").is_symlink()


@pytest.mark.parametrize("name", ["index.html", "results.csv"])
def test_files_of_others_are_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"years of work")
    with pytest.raises(OSError, match=rf"{name} was not written by a report and would be lost: choose another folder"):
        write_files(tmp_path, FIRST)
    assert held(tmp_path) == {name: b"years of work"}


@pytest.mark.parametrize("listed", ["[1]", "{", '{"figures/old.svg": 3}'])
def test_a_report_without_a_readable_list_is_replaced_and_nothing_removed(tmp_path: Path, listed: str) -> None:
    write_files(tmp_path, FIRST)
    (tmp_path / LIST).write_text(listed)
    write_files(tmp_path, SECOND)
    assert held(tmp_path) == FIRST | SECOND
