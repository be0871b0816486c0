"""The findings: each sentence is computed, so a planted change alters it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest

pytest.importorskip("pandas", reason="the report needs the extra pytest-attn[report]")
pytest.importorskip("matplotlib", reason="the report needs the extra pytest-attn[report]")

import runs

from attn_impls.problem import CAUSAL, FULL, Direction, Problem
from pytest_attn.perf.record import Record, Run, Time
from pytest_attn.report.findings import MOST, findings
from pytest_attn.report.forecast import forecast
from pytest_attn.report.frame import records_frame
from pytest_attn.report.run_pairs import run_pairs
from pytest_attn.report.sweeps import find_sweeps, headline_problem

IMPLS = ("naive", "sdpa-cudnn", "flash-attn-4")
LENGTHS = [
    Problem(4, 16, 16, s, s, 64, "bf16", m) for s in (512, 1024, 2048, 4096, 16384, 32768) for m in (FULL, CAUSAL)
]


def said(*given: Run) -> list[str]:
    frame = records_frame(given)
    return findings(frame, find_sweeps(frame), headline_problem(frame), run_pairs(frame), forecast(frame))


def made(change: Callable[[Record], Record] = lambda record: record, **options: object) -> Run:
    return runs.run_of_problems(LENGTHS, IMPLS, change=change, **options)  # type: ignore[arg-type]


def one(sentences: list[str], beginning: str) -> str:
    (sentence,) = (each for each in sentences if each.startswith(beginning))
    return sentence


def timed(record: Record, factor: float) -> Record:
    if record.time_s is None:
        return record
    time = record.time_s
    return dataclasses.replace(record, time_s=Time(factor * time.median, factor * time.p10, factor * time.p90, time.n))


def test_crossover_moves_with_the_data() -> None:
    before = one(said(made()), "Fastest forward by length")
    assert before.startswith("Fastest forward by length: sdpa-cudnn up to 4096 and flash-attn-4 from 16384")
    after = one(said(made(lambda r: timed(r, 0.6) if r.impl == "flash-attn-4" else r)), "Fastest forward by length")
    assert after.startswith("Fastest forward by length: sdpa-cudnn up to 512 and flash-attn-4 from 1024")


def test_lead_and_memory_share_follow_the_data() -> None:
    pattern = r"sdpa-cudnn is ([\d.]+)× faster than naive forward at batch 4.*it needs ([\d.]+) % of its memory"
    found = re.match(pattern, said(made())[0])
    doubled = re.match(pattern, said(made(lambda r: timed(r, 2) if r.impl == "naive" else r))[0])
    assert found
    assert doubled
    assert float(doubled[1]) == pytest.approx(2 * float(found[1]), rel=0.05)

    def fatter(record: Record) -> Record:
        if record.impl != "sdpa-cudnn" or record.memory is None:
            return record
        return dataclasses.replace(
            record, memory=dataclasses.replace(record.memory, peak_bytes=10 * record.memory.peak_bytes)
        )

    share = re.search(r"needs ([\d.]+) % of its memory", said(made(fatter))[0])
    assert share
    assert float(share[1]) == pytest.approx(10 * float(found[2]), rel=0.05)


def test_memory_that_ran_out_is_predicted_in_words() -> None:
    sentence = one(said(made()), "10 of 108 measurements ran out of memory")
    # 1.5 times two score matrices of 4 * 16 * 32768 * 32768 in bf16, and outputs.
    assert sentence.endswith("naive forward and backward at length 32768 would have needed 385 GiB (predicted).")


def test_backward_over_forward_follows_the_data() -> None:
    before = one(said(made()), "Backward takes")
    slow = said(made(lambda r: timed(r, 4) if (r.impl, r.direction) == ("naive", Direction.BWD) else r))
    after = one(slow, "Backward takes")
    assert before != after
    assert re.search(r"to \d\.\d× as long for naive", after)


def test_what_a_causal_mask_gains_follows_the_data() -> None:
    def skipping(record: Record) -> Record:
        return timed(record, 0.1) if (record.impl, record.problem.mask) == ("sdpa-cudnn", CAUSAL) else record

    sentence = one(said(made(skipping, directions=("fwd",))), "A causal mask makes forward at length 32768")
    found = re.search(r"([\d.]+)× as fast for sdpa-cudnn, ([\d.]+)× for flash-attn-4 \(batch 4, 16 heads", sentence)
    assert found
    assert float(found[1]) > 10
    assert 1 < float(found[2]) < 2.1


def test_growth_of_memory_follows_the_data() -> None:
    def flat(record: Record) -> Record:
        if record.impl != "flash-attn-4" or record.memory is None:
            return record
        return dataclasses.replace(record, memory=dataclasses.replace(record.memory, peak_bytes=2**30))

    sentence = one(said(made(flat, directions=("fwd",))), "From length 512 to 16384 (32×), memory forward grows")
    found = re.search(r"grows (\d+)× for naive and 1\.0× for flash-attn-4 \(full mask; batch 4, 16 heads", sentence)
    assert found
    assert 500 < float(found[1]) <= 1024


def test_the_mean_gain_is_geometric() -> None:
    def halved(record: Record) -> Record:
        median = {"naive": 4e-3, "flash-attn-4": 2e-3}.get(record.impl, 1e-3)
        time = Time(median, median, median, 9)
        fast = record.impl == "sdpa-cudnn" and record.problem.q_len > 2048
        return dataclasses.replace(record, time_s=Time(2.5e-4, 2.5e-4, 2.5e-4, 9) if fast else time, status="ok")

    # Half of the problems gain 4 times, half 16 times.
    sentence = one(said(made(halved, directions=("fwd",))), "Of 12 problems forward")
    assert sentence.endswith("fastest is sdpa-cudnn in 12; over naive, sdpa-cudnn gains 8.0× in the geometric mean.")


def test_wins_within_the_spread_are_counted_as_level() -> None:
    def close(record: Record) -> Record:
        wide = 0.2 if record.problem.mask == FULL else 0.01
        median = {"naive": 4e-3, "flash-attn-4": 1.1e-3}.get(record.impl, 1e-3)
        return dataclasses.replace(
            record, time_s=Time(median, (1 - wide) * median, (1 + wide) * median, 9), status="ok"
        )

    sentence = one(said(made(close, directions=("fwd",))), "Of 12 problems forward")
    assert "the fastest is sdpa-cudnn in 12, level with the second in 6; over naive" in sentence


def test_errors_beyond_the_budget_are_counted() -> None:
    assert one(said(made()), "The errors of").endswith("of it.")

    def wrong(record: Record) -> Record:
        bad = (record.impl, record.problem.q_len, record.direction) == ("sdpa-cudnn", 512, Direction.FWD)
        return dataclasses.replace(record, accuracy={"error_ratio": 1.5}) if bad else record

    assert one(said(made(wrong)), "Beyond").startswith(
        "Beyond the error budget: sdpa-cudnn in 2 of 36 records, by up to 1.5×"
    )


def test_energy_and_nearness_to_the_peak_are_said_only_where_recorded() -> None:
    full = said(made(directions=("fwd",)))
    assert one(full, "Least energy forward").startswith("Least energy forward at that problem: flash-attn-4 with ")
    speed = one(full, "Highest speed")
    assert re.search(r"nearest to the arithmetic peak at its \d+ MHz is flash-attn-4 forward with [\d.]+ %", speed)
    bare = " ".join(said(made(directions=("fwd",), telemetry=False)))
    assert "energy" not in bare
    assert "nearest" not in bare


def test_two_runs_are_compared_first() -> None:
    before, after = made(source="a.json"), made(lambda r: timed(r, 0.5) if r.impl == "naive" else r, source="b.json")
    sentence = said(before, after)[0]
    assert re.match(
        r"Speed of B over A: the median of \d+ cells is 1.00×; (\d+) are clearly faster and 0 clearly", sentence
    )
    assert "most gained is naive" in sentence
    assert "(2.00×)" in sentence
    assert "most lost" not in sentence
    other = runs.grid_run("hw4", IMPLS, source="c.json")
    assert "no measurement in common" in said(before, other)[0]


def test_no_implementation_leads_over_itself_in_another_run() -> None:
    # The same times twice: sorted by name, the second run would win everything, with a lead of nothing.
    twice = said(made(source="b.json"), made(source="a.json"))
    for name in ("b", "a"):
        (lead,) = (each for each in twice if each.startswith(f"sdpa-cudnn · {name} is"))
        assert "faster than naive forward" in lead
        assert one(twice, f"Fastest forward by length: sdpa-cudnn · {name} up to 4096 and flash-attn-4 · {name}")
        assert one(twice, f"Of 12 problems forward, the fastest is sdpa-cudnn · {name} in 8")


def test_there_are_never_too_many() -> None:
    assert len(said(made())) <= MOST
