"""The noise floor: what a no-op gate publishes, and what the gates of the same machine make of it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from pytest_attn.gate import NotComparable, Outcome, Pair, Thresholds, Verdict, compare, judge_pairs
from pytest_attn.gate.noise import BadNoise, noise_document, noise_floor, raised_note, read_noise
from pytest_attn.gate.settings import BadSettings, read_settings
from pytest_attn.gate.thresholds import STORED, Override
from tests.tool.gate_runs import LARGE, MACHINE, SMALL, record, run_of

MS = 1e-3
CELL = f"naive {SMALL.id} fwd"


def pairs(*ratios: float) -> list[Pair]:
    """Pairs of one cell whose head takes so many times the base."""
    return [Pair(run_of(record(MS)), run_of(record(ratio * MS)), "AB") for ratio in ratios]


def write(path: Path, **changes: Any) -> Path:
    cells = [{"impl": "naive", "problem_id": SMALL.id, "direction": "fwd", "floor": 0.02}]
    path.write_text(json.dumps(noise_document("abc", MACHINE, 7, cells) | changes))
    return path


def test_a_floor_is_no_less_than_the_error_of_the_median() -> None:
    (lucky,) = noise_floor(judge_pairs(pairs(0.98, 0.99, 0.995, 1.0, 1.005, 1.01, 1.02), Thresholds()))
    assert lucky["median"] == 0
    assert lucky["floor"] == pytest.approx(1.2533 * 1.4826 * math.log(1.01) / math.sqrt(7), rel=0.02)
    (off,) = noise_floor(judge_pairs(pairs(*[1.02] * 7), Thresholds()))
    assert off["floor"] == off["median"] == pytest.approx(math.log(1.02))


def test_one_burst_does_not_raise_a_floor() -> None:
    (calm,) = noise_floor(judge_pairs(pairs(0.99, 0.995, 1.0, 1.0, 1.0, 1.005, 1.01), Thresholds()))
    (burst,) = noise_floor(judge_pairs(pairs(0.99, 0.995, 1.0, 1.0, 1.0, 1.005, 1.40), Thresholds()))
    assert burst["floor"] == calm["floor"]


@pytest.mark.parametrize(("floor", "outcome", "threshold"), [(0.02, "same", 0.0618), (0.005, "slower", 0.025)])
def test_a_cell_must_move_by_three_times_its_floor(floor: float, outcome: str, threshold: float) -> None:
    thresholds = Thresholds(noise={CELL: floor})
    (verdict,) = judge_pairs(pairs(*[1.05] * 7), thresholds)
    assert verdict.outcome == outcome
    assert verdict.threshold == pytest.approx(threshold, abs=1e-4)
    assert verdict.to_dict()["threshold"] == verdict.threshold
    assert ("its noise asks for more than 6.18 %" in verdict.sentence) is (floor == 0.02)
    (stored,) = compare(run_of(record(MS)), run_of(record(1.06 * MS)), dataclasses.replace(STORED, noise={CELL: floor}))
    assert stored.outcome == outcome


def test_a_floor_belongs_to_its_cell_and_raises_only() -> None:
    thresholds = Thresholds(noise={CELL: 0.02}, cells=(Override("naive *", {"relative": 0.2}),))
    assert thresholds.for_cell(("naive", SMALL.id, "fwd")).relative == 0.2, "a wider exception stays"
    plain = Thresholds(noise={CELL: 0.02})
    assert plain.for_cell(("naive", LARGE.id, "fwd")).relative == plain.relative
    assert plain.for_cell(("naive", LARGE.id, "fwd")).said == ""


def test_the_output_says_how_many_cells_were_raised() -> None:
    verdicts = judge_pairs(pairs(*[1.0] * 7), Thresholds())
    assert raised_note(verdicts, Thresholds()) == []
    assert raised_note(verdicts, Thresholds(noise={CELL: 0.02})) == [
        "note: the noise floor raises the threshold of 1 of 1 cell, up to 6.18 %"
    ]
    assert "of none of 1 cell" in raised_note(verdicts, Thresholds(noise={CELL: 0.001}))[0]
    gone = [Verdict("naive", SMALL.id, "fwd", Outcome.NO_DATA, "gone", "")]
    assert "of none of 0 cells" in raised_note(gone, Thresholds(noise={CELL: 0.02}))[0]


def test_a_file_gives_floors_to_both_forms_of_the_gate(tmp_path: Path) -> None:
    write(tmp_path / "floor.json")
    (tmp_path / "pyproject.toml").write_text('[tool.pytest-attn.gate]\nnoise_floor = "floor.json"\n')
    settings = read_settings(tmp_path / "pyproject.toml").with_noise()
    assert settings.paired.noise == settings.stored.noise == {CELL: 0.02}
    assert settings.noise is not None
    settings.noise.refuse_other(run_of(record(MS), machine=MACHINE | {"driver": "590.2"}))
    with pytest.raises(NotComparable, match=r"another machine's.*-> A100"):
        settings.noise.refuse_other(run_of(record(MS), machine=MACHINE | {"device": "A100"}))
    other = write(tmp_path / "other.json", cells=[])
    assert read_settings(tmp_path / "pyproject.toml").with_noise(other).paired.noise == {}, "the option's file wins"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"schema": 1}, "is no noise.json of this version's attn gate noop"),
        ({"cells": [{"impl": "naive"}]}, "cannot be read: KeyError"),
        ({"cells": 3}, "cannot be read: TypeError"),
        ({"machine": 3}, "cannot be read: TypeError"),
        (
            {"cells": [{"impl": "a", "problem_id": "b", "direction": "fwd", "floor": -1}]},
            "holds a floor that is negative or not finite",
        ),
    ],
)
def test_a_file_of_something_else_is_one_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    path = write(tmp_path / "floor.json", **changes)
    with pytest.raises(BadNoise, match=r"floor\.json") as refused:
        read_noise(path)
    assert sentence in str(refused.value)


def test_a_file_that_is_missing_or_cut_short_is_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "floor.json")
    path.write_text(path.read_text()[:-9])
    with pytest.raises(BadNoise, match="is not JSON, or was cut short"):
        read_noise(path)
    with pytest.raises(BadNoise, match=r"cannot read .*: No such file"):
        read_noise(tmp_path / "none.json")


def test_the_key_is_the_name_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.pytest-attn.gate]\nnoise_floor = 0.01\n")
    with pytest.raises(BadSettings, match=r"noise_floor: 0.01 is not the name of a file"):
        read_settings(tmp_path / "pyproject.toml")
