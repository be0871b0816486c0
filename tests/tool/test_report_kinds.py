"""The kinds of figures beyond lines and bars: what they draw, name, mark and leave out, on runs that are made up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

pytest.importorskip("pandas", reason="the report needs the extra pytest-attn[report]")
pytest.importorskip("matplotlib", reason="the report needs the extra pytest-attn[report]")
pytest.importorskip("jinja2", reason="the report needs the extra pytest-attn[report]")

import runs

from attn_impls.problem import CAUSAL, FULL, Problem
from pytest_attn.perf.record import Record, Run, Time
from pytest_attn.report.draw import Sheet, settings
from pytest_attn.report.figures.lines import MOST_LINES
from pytest_attn.report.figures.roofline import Ceilings, ceilings
from pytest_attn.report.forecast import forecast
from pytest_attn.report.frame import records_frame
from pytest_attn.report.planes import find_plane
from pytest_attn.report.reference import reference_tables
from pytest_attn.report.run_pairs import pair_tables, run_pairs
from pytest_attn.report.sections import Data, plans
from pytest_attn.report.style import _KNOWN, look
from pytest_attn.report.sweeps import find_sweeps, headline_problem

LENGTHS = [Problem(4, 16, 16, s, s, 64, "bf16", m) for s in (4096, 8192, 16384, 32768) for m in (FULL, CAUSAL)]


def sheets(*given: Run, only: str = "") -> dict[str, Sheet]:
    """Draw the figures of all sections of a report of ``given``, or of one, by name."""
    frame = records_frame(given)
    data = Data.of(given, frame, find_sweeps(frame), headline_problem(frame))
    with settings():
        made = [shot.draw() for plan in plans(data) if only in ("", plan.key) for shot in plan.shots]
    return {sheet.name: sheet for sheet in made if sheet is not None}


def texts(sheet: Sheet, panel: int = 0) -> list[str]:
    return [text.get_text() for text in sheet.panels[panel].ax.texts]


def slower(record: Record, factor: float) -> Record:
    assert record.time_s is not None
    time = record.time_s
    times = (factor * each for each in (time.median, time.p10, time.p90))
    return dataclasses.replace(record, time_s=Time(*times, time.n))


@pytest.fixture(scope="module")
def paper() -> dict[str, Sheet]:
    return sheets(runs.grid_run("fa-paper"))


@pytest.fixture(scope="module")
def long() -> dict[str, Sheet]:
    return sheets(runs.run_of_problems(LENGTHS, tuple(runs.MODELS), directions=("fwd",)))


def test_every_family_has_its_figures_titles_that_ask_and_alternatives(paper: dict[str, Sheet]) -> None:
    for family in ("roofline", "fastest-by-shape", "causal-over-full", "accuracy-over-speed", "energy-by-seq"):
        assert {f"{family}-{direction}" for direction in ("fwd", "bwd", "fwd-bwd")} <= set(paper)
    assert {"first-call", "backward-by-seq-bwd", "peak-at-clock-by-seq-fwd"} <= set(paper)
    for sheet in paper.values():
        assert sheet.title.endswith("?")
        assert all(len(panel.alt) > 60 for panel in sheet.panels)
        assert sheet.hints


def test_roofline_has_measured_and_datasheet_ceilings_and_stays_below() -> None:
    run = runs.grid_run("fa-paper", ("naive", "sdpa-cudnn"), directions=("fwd",))
    (panel,) = sheets(run, only="roofline")["roofline-fwd"].panels
    lines = {str(line.get_gid()): line for line in panel.ax.lines}
    frame = records_frame([run])
    assert max(lines["panel-0-measured"].get_ydata()) == pytest.approx(frame["tflops"].max())
    x, y = lines["panel-0-datasheet"].get_xydata().T
    # 3350 GB/s of an H100 up to the knee, then its 989 TFLOP/s.
    assert y == pytest.approx([3.35 * x[0], runs.PEAK / 1e12, runs.PEAK / 1e12], rel=1e-3)
    assert x[1] == pytest.approx(989.4e3 / 3350, rel=1e-3)
    for name in ("naive", "sdpa-cudnn"):
        x, y = lines[f"panel-0-series-{name}"].get_xydata().T
        roof = [min(frame["tflops"].max(), frame["gbps"].max() * each / 1e3) for each in x]
        assert (y <= [each * 1.0001 for each in roof]).all()
        assert len(x) >= 6
    assert f"{frame['tflops'].max():.0f} TFLOP/s" in panel.alt
    assert "the datasheet's 989 TFLOP/s and 3350 GB/s" in panel.alt


def test_roofline_of_an_unknown_device_or_of_two_has_no_datasheet_line() -> None:
    options = {"directions": ("fwd",), "telemetry": False}
    run, other = (
        runs.grid_run("fa-paper", ("naive", "sdpa-cudnn"), device=device, source=device, **options)
        for device in ("Some GPU 9000", "NVIDIA H200")
    )
    frame = records_frame([run, other])
    assert ceilings(frame) == Ceilings(frame["tflops"].max(), frame["gbps"].max(), None, None)
    known = ceilings(frame[frame["device"] == "NVIDIA H200"])
    assert known is not None
    assert (known.datasheet, known.bandwidth) == (989.4, 4800)
    made = sheets(run)
    assert not [line for line in made["roofline-fwd"].panels[0].ax.lines if "datasheet" in str(line.get_gid())]
    assert "peak-at-clock-by-seq-fwd" not in made
    assert "energy-by-seq-fwd" not in made


def test_roofline_under_what_a_product_and_a_copy_reached() -> None:
    run = runs.grid_run("fa-paper", ("naive", "sdpa-cudnn"), directions=("fwd",))
    run = dataclasses.replace(run, instruments={"ceilings": {"tflops": {"bf16": 790.0}, "gbps": 2900.0}})
    limits = ceilings(records_frame([run]))
    assert limits is not None
    assert (limits.reached, limits.traffic, limits.probed) == (790, 2900, True)
    made = sheets(run)["roofline-fwd"]
    assert "measured: 790, 2900 GB/s" in texts(made, 0)
    assert "of arithmetic's measured ceiling there" in made.panels[0].alt
    assert not any("most reached" in note for note in made.notes)


@pytest.mark.parametrize("found", [None, 3, {"tflops": None, "gbps": 1}, {"tflops": {"bf16": "x"}, "gbps": {}}])
def test_ceilings_that_a_file_holds_in_another_form_are_not_used(found: object) -> None:
    run = runs.grid_run("fa-paper", ("naive",), directions=("fwd",))
    limits = ceilings(records_frame([dataclasses.replace(run, instruments={"ceilings": found})]))
    assert limits is not None
    assert not limits.probed


def test_map_names_the_fastest_with_its_lead_and_says_level_where_spreads_overlap() -> None:
    def change(record: Record) -> Record:
        if record.impl == "sdpa-flash":
            return dataclasses.replace(record, time_s=Time(1.0, 0.99, 1.01, 9))
        level = record.problem.q_len == 512
        return dataclasses.replace(record, time_s=Time(0.995, 0.98, 1.0, 9) if level else Time(0.25, 0.24, 0.26, 9))

    run = runs.grid_run("fa-paper", ("sdpa-flash", "flex"), directions=("fwd",), change=change)
    plane = find_plane(records_frame([run]))
    assert plane is not None
    assert (len(plane.rows), len(plane.columns)) == (3, 6)
    made = sheets(run, only="fastest")["fastest-by-shape-fwd"]
    for number, panel in enumerate(made.panels):
        said = texts(made, number)
        assert said.count("≈") == 3
        assert said.count("4.0×") == 15
        assert {line.get_marker() for line in panel.ax.lines} == {look("flex").marker}
        assert "Fastest: flex 18 times" in panel.alt
    assert made.hints["panel-0-cell-1-0"] == "D64 S1024: flex, 4.0× over sdpa-flash"


def test_each_run_has_a_map_of_its_own_and_masks_choose_panels() -> None:
    before, after = two_runs({"sdpa-flash": 0.01})
    made = sheets(before, after, only="fastest")["fastest-by-shape-fwd"]
    assert [(panel.title[22:], panel.mask) for panel in made.panels] == [
        *(
            ("full mask, A", "full"),
            ("causal mask, A", "causal"),
            ("full mask, B", "full"),
            ("causal mask, B", "causal"),
        )
    ]
    wins = ["sdpa-flash" in panel.alt.split("Fastest: ")[1].split(".")[0] for panel in made.panels]
    assert wins[2:] == [True, True]
    for panel in made.panels:
        others = " · after" if panel.title.endswith("A") else " · before"
        assert others not in panel.alt


def test_ticks_of_factors_do_not_stand_on_each_other() -> None:
    made = sheets(*two_runs({"flex": 0.8}), only="runs")["speed-up-b-over-a-fwd"]
    for panel in made.panels:
        ax = panel.ax
        width = ax.get_position().width * made.figure.get_figwidth()
        places = [ax.transAxes.inverted().transform(ax.transData.transform((tick, 0)))[0] for tick in ax.get_xticks()]
        assert 1.0 in ax.get_xticks()
        assert all(abs(a - b) * width > 0.3 for a in places for b in places if a != b)


def test_a_small_lead_is_no_lead_of_one() -> None:
    def change(record: Record) -> Record:
        median = 1.0 if record.impl == "flex" else 1.03
        return dataclasses.replace(record, time_s=Time(median, median - 0.001, median + 0.001, 9))

    run = runs.grid_run("fa-paper", ("sdpa-flash", "flex"), directions=("fwd",), change=change)
    assert texts(sheets(run, only="fastest")["fastest-by-shape-fwd"]).count("1.03×") == 18


def test_a_point_that_all_refused_is_no_edge_of_the_axis() -> None:
    def change(record: Record) -> Record:
        refused = dataclasses.replace(record, status="unsupported", reason="no", time_s=None, memory=None)
        return refused if record.problem.q_len == 4096 else record

    problems = [problem for problem in LENGTHS if problem.mask == FULL]
    run = runs.run_of_problems(problems, ("sdpa-flash", "flex"), directions=("fwd",), change=change)
    made = sheets(run, only="seq")["time-by-seq-fwd"]
    assert made.panels[0].ax.get_xlim()[0] > 4096
    assert any(note.startswith("Not drawn, unsupported") for note in made.notes)


@pytest.mark.parametrize(
    ("grid", "rows", "columns"), [("lab5", 4, 6), ("fa-paper", 3, 6), ("models", 6, 5), ("hw4", 1, 4), ("smoke", 3, 3)]
)
def test_a_plane_is_found_in_every_grid(grid: str, rows: int, columns: int) -> None:
    plane = find_plane(records_frame([runs.grid_run(grid, ("naive", "flex"), directions=("fwd",))]))
    assert plane is not None
    assert (len(plane.rows), len(plane.columns)) == (rows, columns)


def test_memory_where_it_ran_out_is_predicted_from_what_was_measured() -> None:
    run = runs.run_of_problems(LENGTHS, ("naive", "flex"), directions=("fwd",))
    frame = records_frame([run])
    gone = frame[(frame["status"] == "oom") & (frame["q_len"] == 32768)]
    assert len(gone) == 2
    made = forecast(frame)
    exact = 4 * 16 * 32768**2 * 2 * 2.0  # two score matrices in bf16
    for problem in gone["problem_id"]:
        assert made.bytes["naive", problem, "fwd"] == pytest.approx(exact, rel=0.02)
    sheet = sheets(run, only="seq")["memory-by-seq-fwd"]
    dotted = [line for line in sheet.panels[0].ax.lines if "predicted" in str(line.get_gid())]
    assert [line.get_linestyle() for line in dotted] == [":"]
    assert dotted[0].get_ydata()[-1] == pytest.approx(exact, rel=0.02)
    assert dotted[0].get_ydata()[-1] < sheet.panels[0].ax.get_ylim()[1]
    assert "device memory 80.0 GiB" in texts(sheet)
    assert any(note.startswith("Predicted where memory ran out: naive full as 2.0 × the score") for note in sheet.notes)
    assert "predicted 256 GiB at 32768" in sheet.panels[0].alt


def test_a_prediction_under_the_devices_memory_says_what_it_leaves_out() -> None:
    def change(record: Record) -> Record:
        gone = record.impl == "naive" and record.problem.q_len == 16384
        return dataclasses.replace(record, status="oom", reason="full", time_s=None, memory=None) if gone else record

    problems = [Problem(1, 8, 8, s, s, 64, "bf16", FULL) for s in (1024, 2048, 4096, 8192, 16384)]
    for memory, said in ((80 * 2**30, 1), (2**30, 0)):
        run = runs.run_of_problems(problems, ("naive", "flex"), directions=("fwd",), change=change)
        run = dataclasses.replace(run, machine={**run.machine, "memory_bytes": memory})
        notes = sheets(run, only="seq")["memory-by-seq-fwd"].notes
        assert any(note.startswith("Predicted where memory ran out: naive") for note in notes)
        assert sum(note.startswith("A prediction under the device's memory") for note in notes) == said


def test_memory_that_follows_no_formula_is_not_predicted() -> None:
    def change(record: Record) -> Record:
        if record.memory is None:
            return record
        odd = record.memory.peak_bytes * (1 + (record.problem.q_len == 8192))
        return dataclasses.replace(record, memory=dataclasses.replace(record.memory, peak_bytes=odd))

    run = runs.run_of_problems(LENGTHS, ("naive", "flex"), directions=("fwd",), change=change)
    assert forecast(records_frame([run])).bytes == {}


def test_causality_shows_both_masks_and_what_skipping_could_gain(paper: dict[str, Sheet]) -> None:
    made = paper["causal-over-full-fwd"]
    labels = [label.get_text() for label in made.panels[0].ax.get_yticklabels()]
    assert labels[0] == "flash-attn-4"
    assert dict(zip(labels, texts(made), strict=True))["sdpa-math"].endswith("1.0×")
    assert texts(made)[0].endswith("2.0×")
    assert made.notes == [
        "A causal mask leaves 50 % of the scores: a kernel that skips the rest gains 2.0× at most by that."
    ]


def test_accuracy_stands_over_speed_with_the_limit() -> None:
    run = runs.grid_run("fa-paper", ("naive", "sdpa-cudnn"), directions=("fwd",))
    (panel,) = sheets(run, only="accuracy")["accuracy-over-speed-fwd"].panels
    marks = {line.get_label(): line for line in panel.ax.lines}
    assert list(marks["sdpa-cudnn"].get_xdata()) == [1.0]
    assert marks["naive"].get_xdata()[0] < 0.3
    assert marks["naive"].get_ydata()[0] == pytest.approx(0.5, rel=0.2)
    assert [line.get_ydata()[0] for line in panel.ax.lines if str(line.get_gid()).endswith("limit")] == [1.0]


def test_percent_of_peak_is_that_at_the_clock_with_the_spread_of_the_speed() -> None:
    run = runs.grid_run("fa-paper", ("naive", "sdpa-cudnn"), directions=("fwd",))
    ax = sheets(run, only="roofline")["peak-at-clock-by-seq-fwd"].panels[0].ax
    drawn = next(line for line in ax.lines if line.get_gid() == "panel-0-series-sdpa-cudnn").get_ydata()
    at_clock = {r.percent_of_peak_at_clock for r in run.records if r.impl == "sdpa-cudnn"}
    assert set(drawn) <= at_clock
    assert not set(drawn) & {r.percent_of_peak for r in run.records}
    frame = records_frame([run])
    spread = frame["peak_at_clock_p90"] / frame["percent_of_peak_at_clock"]
    assert spread.to_numpy() == pytest.approx((frame["time"] / frame["time_p10"]).to_numpy())


def test_energy_is_per_token_and_backward_is_over_forward() -> None:
    frame = records_frame([runs.grid_run("lab5", ("naive", "flex"))])
    row = frame[(frame["impl"] == "flex") & (frame["direction"] == "bwd")].iloc[0]
    assert row["energy_per_token"] == pytest.approx(row["energy_j"] / (row["batch"] * row["q_len"]))
    forward = frame[(frame["impl"] == "flex") & (frame["direction"] == "fwd")].iloc[0]
    assert row["backward_ratio"] == pytest.approx(row["time"] / forward["time"])
    assert row["backward_ratio_low"] < row["backward_ratio"] < row["backward_ratio_high"]
    assert frame[frame["direction"] != "bwd"]["backward_ratio"].isna().all()


def test_ladder_climbs_in_the_order_of_the_registry() -> None:
    rungs = ("tiled-global", "tiled-smem", "tiled-regs")
    run = runs.grid_run("hw4", ("naive", *rungs), directions=("fwd",))
    made = sheets(run, only="ladder")["ladder-fwd"]
    assert [label.get_text() for label in made.panels[0].ax.get_yticklabels()] == [*rungs, "naive"]
    frame = records_frame([run])
    at = frame[frame["q_len"] == 16384].set_index("impl")["tflops"]
    assert texts(made)[1].endswith(f"· {at['tiled-smem'] / at['tiled-global']:.1f}×")
    assert "the last rung" in texts(made)[3]
    backwards = dataclasses.replace(run, implementations=dict(reversed(run.implementations.items())))
    labels = sheets(backwards, only="ladder")["ladder-fwd"].panels[0].ax.get_yticklabels()
    assert [label.get_text() for label in labels] == [*reversed(rungs), "naive"]


def test_a_run_without_rungs_says_nothing_of_a_ladder(paper: dict[str, Sheet]) -> None:
    assert not [name for name in paper if name.startswith("ladder")]


def test_of_many_lines_the_best_are_drawn_and_the_others_named(long: dict[str, Sheet]) -> None:
    made = long["time-by-seq-fwd"]
    drawn = {line.get_label() for line in made.panels[0].ax.lines} & set(runs.MODELS)
    assert len(drawn) == MOST_LINES
    assert {"naive", "flash-attn-4"} <= drawn
    rivals = {line.get_label() for line in long["roofline-fwd"].panels[0].ax.lines} & set(runs.MODELS)
    assert len(rivals) == MOST_LINES
    assert {"naive", "flash-attn-4"} <= rivals
    left = set(runs.MODELS) - drawn
    (note,) = [note for note in made.notes if note.startswith(f"Drawn are the {MOST_LINES} best")]
    assert all(name in note for name in left)


def test_known_looks_differ_without_colour_and_with_it() -> None:
    looks = list(_KNOWN.values())
    assert len({(each.marker, str(each.dash)) for each in looks}) == len(looks)
    assert len({each.light for each in looks}) == len(looks)


def two_runs(change: dict[str, float]) -> Sequence[Run]:
    before = runs.grid_run("lab5", ("naive", "flex", "sdpa-flash"), directions=("fwd",), source="before.json")

    def moved(record: Record) -> Record:
        return slower(record, change.get(record.impl, 1.0))

    after = runs.grid_run(
        "lab5", ("naive", "flex", "sdpa-flash"), directions=("fwd",), source="after.json", change=moved
    )
    return before, after


def test_runs_are_paired_by_cell_with_the_largest_gains_and_losses() -> None:
    given = two_runs({"flex": 0.5, "sdpa-flash": 1.25})
    (pair,) = run_pairs(records_frame(given))
    assert len(pair.cells) == len(given[0].records)
    assert pair.unpaired == 0
    ratio = pair.cells.groupby("impl")["ratio"].median()
    assert ratio.to_dict() == pytest.approx({"naive": 1.0, "flex": 2.0, "sdpa-flash": 0.8})
    assert set(pair.changes("fwd", 5)["impl"][:5]) == {"flex"}
    assert set(pair.changes("fwd", 5)["impl"][5:]) == {"sdpa-flash"}
    by_impl, cells = pair_tables(pair)
    assert [cell.text for cell in by_impl.rows[1].cells][:1] == ["0.800×"]
    assert [row.label.split()[0] for row in (cells.rows[0], cells.rows[-1])] == ["flex", "sdpa-flash"]
    made = sheets(*given, only="runs")["speed-up-b-over-a-fwd"]
    assert "2.00× over 48 cells" in texts(made)
    colours = {line.get_color() for line in made.panels[0].ax.lines}
    assert {look(impl).light for impl in ("naive", "flex", "sdpa-flash")} <= colours


def test_the_same_run_twice_shows_no_clear_change() -> None:
    given = two_runs({})
    made = sheets(*given, only="runs")["speed-up-b-over-a-fwd"]
    assert len(made.panels) == 1
    assert "No cell changed clearly: the p10–p90 spreads of all pairs overlap." in made.notes


def test_later_runs_are_hollow_in_the_same_colour() -> None:
    made = sheets(*two_runs({}), only="batch")["time-by-batch-fwd"]
    first, second = (
        next(line for line in made.panels[0].ax.lines if line.get_label() == f"flex · {name}")
        for name in ("before", "after")
    )
    assert first.get_color() == second.get_color() == first.get_markerfacecolor()
    assert second.get_markerfacecolor() != second.get_color()
    assert {"flex A", "flex B"} <= set(texts(made))


def test_the_reports_three_tables_stand_at_their_problem() -> None:
    frame = records_frame([runs.grid_run("lab5", ("naive", "flex"))])
    tables = list(reference_tables(frame, headline_problem(frame)))
    assert [(table.metric, "causal" in table.title) for table in tables] == [
        (metric, causal) for causal in (False, True) for metric in ("time", "tflops", "memory")
    ]
    assert all("batch 16, length 1024, 32 heads, head dim 64" in table.title for table in tables)
    time, _, memory = tables[:3]
    assert time.columns == ("Forward", "Backward", "Forward and backward")
    assert [cell.best for cell in time.rows[1].cells] == [True, True, True]
    assert all(cell.small.endswith("×") for cell in time.rows[1].cells)
    assert all(cell.small.endswith(" %") for cell in memory.rows[1].cells)
    other = records_frame([runs.grid_run("hw4", ("naive", "flex"), directions=("fwd",))])
    assert "length 16384" in next(reference_tables(other, headline_problem(other))).title
