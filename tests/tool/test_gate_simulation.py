"""The simulation: its noise, its rules in vector form, and the committed table."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")

from pytest_attn.gate import Outcome, Settings, Thresholds  # noqa: E402
from pytest_attn.gate.paired import judge_ratios  # noqa: E402
from tests.tool.gate_noise import NOISES, ROUNDS, Noise, paired_ratios, processes, stored_rounds  # noqa: E402
from tests.tool.gate_rules import slower_by_mann_whitney, slower_by_median, slower_by_pairs  # noqa: E402

TABLE = Path(__file__).resolve().parents[2] / "reports" / "gate" / "simulation.json"


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("pairs", [7, 10, 15])
def test_the_rule_in_vector_form_is_the_rule(name: str, pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    ratios = paired_ratios(NOISES[name], 200, pairs, rng) + rng.uniform(0, 0.06, (200, 1))
    flags = slower_by_pairs(ratios)
    for row, flag in zip(ratios, flags, strict=True):
        outcome, _, _ = judge_ratios([math.exp(ratio) for ratio in row], 1e-3, 1e-9, Thresholds())
        assert (outcome is Outcome.SLOWER) == flag
    assert 0 < flags.sum() < 200


def test_pairs_take_out_the_session_and_a_straight_drift() -> None:
    rng = np.random.default_rng(0)
    steady = paired_ratios(Noise(session=0.5, process=0, rounds=0), 50, 8, rng)
    assert np.abs(steady).max() < 1e-12
    drifting = paired_ratios(Noise(session=0, process=0, rounds=0, drift=0.5), 50, 8, rng)
    assert np.abs(drifting).max() > 0.01
    assert np.abs(drifting.mean(axis=1)).max() < 1e-12, "A B B A: what one pair gains the next one loses"


@pytest.mark.parametrize(
    ("noise", "spread"),
    [
        (Noise(session=0, process=0.01, rounds=0), 0.01),
        (
            Noise(session=0, process=0, rounds=0, bursts=0.08, burst=0.25),
            math.sqrt(0.08 * 0.0759 - (0.08 * 0.2074) ** 2),
        ),
        (Noise(session=0, process=0, rounds=0, modes=0.3, mode=0.05), math.log(1.05) * math.sqrt(0.3 * 0.7)),
    ],
)
def test_noise_has_the_size_that_it_says(noise: Noise, spread: float) -> None:
    level = processes(noise, 20_000, 8, np.random.default_rng(1))
    assert level.std() == pytest.approx(spread, rel=0.02)


def test_bursts_hit_their_share_of_processes_and_have_their_mean() -> None:
    noise = Noise(session=0, process=0, rounds=0, bursts=0.08, burst=0.25)
    slowed = np.expm1(processes(noise, 20_000, 8, np.random.default_rng(1)))
    assert (slowed > 0).mean() == pytest.approx(0.08, rel=0.05)
    assert slowed[slowed > 0].mean() == pytest.approx(0.25, rel=0.05)


def test_the_rules_of_others_are_what_they_say() -> None:
    rng = np.random.default_rng(2)
    base, head = stored_rounds(Noise(session=0.005, process=0.002, rounds=0.01), 300, rng)
    head += rng.uniform(-0.02, 0.12, (300, 1))
    medians = [np.median(np.exp(side), axis=1) for side in (base, head)]
    assert (slower_by_median(base, head) == (medians[1] > 1.05 * medians[0])).mean() > 0.99
    u = (head[:, :, None] > base[:, None, :]).sum(axis=(1, 2))
    z = (u - ROUNDS**2 / 2) / math.sqrt(ROUNDS**2 * (2 * ROUNDS + 1) / 12)
    assert (slower_by_mann_whitney(base, head) == (z > 1.959964)).all()


def test_the_rank_test_keeps_its_level_where_rounds_are_replicates() -> None:
    base, head = stored_rounds(Noise(session=0, process=0, rounds=0.01), 20_000, np.random.default_rng(3))
    assert slower_by_mann_whitney(base, head).mean() == pytest.approx(0.025, abs=0.004)


def test_the_committed_table_shows_the_default_within_its_targets() -> None:
    data = json.loads(TABLE.read_text(encoding="utf-8"))
    assert data["default"] == f"attn gate run, {Settings().pairs} pairs"
    assert {name: vars(noise) for name, noise in NOISES.items()} == data["noises"], "run reports/gate/simulate.py again"
    rows = [row for row in data["rows"] if row["rule"] == data["default"]]
    assert {row["noise"] for row in rows} == set(NOISES)
    for row in rows:
        assert row["any_false_alarm"] < data["targets"]["any_false_alarm"], row
        assert row["found"]["0.05"] >= data["targets"]["0.05"], row
        assert row["found"]["0.1"] >= data["targets"]["0.1"], row


@pytest.mark.parametrize("name", NOISES)
def test_the_defaults_still_do_what_the_table_says(name: str) -> None:
    rng = np.random.default_rng(4)
    pairs = Settings().pairs
    found = [slower_by_pairs(paired_ratios(NOISES[name], 4000, pairs, rng) + math.log(1.05)).mean() for _ in range(2)]
    assert found[0] * found[1] >= 0.95
    alarms = slower_by_pairs(paired_ratios(NOISES[name], 60_000, pairs, rng)).mean()
    assert 1 - (1 - alarms**2) ** 60 < 0.01
