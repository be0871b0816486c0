"""The report: what it draws, says and writes, on runs that are made up here and need neither torch nor a device."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("pandas", reason="the report needs the extra pytest-attn[report]")
pytest.importorskip("matplotlib", reason="the report needs the extra pytest-attn[report]")
pytest.importorskip("jinja2", reason="the report needs the extra pytest-attn[report]")

from attn_impls.grids import load_grid
from attn_impls.problem import CAUSAL, FULL, Direction, Problem
from pytest_attn.perf.record import BadRun, Memory, Record, Run, Time
from pytest_attn.report import MissingExtra, write_report
from pytest_attn.report.draw import settings
from pytest_attn.report.figures.bars import bars_sheet
from pytest_attn.report.figures.lines import sweep_sheet
from pytest_attn.report.findings import MOST, findings
from pytest_attn.report.frame import records_frame, to_csv
from pytest_attn.report.metrics import METRICS
from pytest_attn.report.style import look
from pytest_attn.report.sweeps import find_sweeps, headline_problem
from pytest_attn.report.tables import comparison_tables, failure_table

SPEED = {"naive": 1.0, "sdpa-flash": 8.0, "tiled-seq": 0.05}
NASTY = '<script>alert("1")</script>|$x^2$ ' + "n" * 300
Change = Callable[[Record], Record]


def make_run(
    problems: Sequence[Problem],
    speed: dict[str, float] = SPEED,
    directions: Sequence[str] = ("fwd", "bwd", "fwd_bwd"),
    change: Change = lambda record: record,
) -> Run:
    """Return a plausible run: naive keeps the scores, so it is slow, large, and out of memory from length 512 on."""
    records = []
    for problem in problems:
        for impl, factor in speed.items():
            for direction in map(Direction, directions):
                seconds = 2e-6 + problem.flops(direction) / (1e12 * factor)
                scores = 4 * problem.batch * problem.heads * problem.q_len * problem.kv_len if impl == "naive" else 0
                peak = problem.min_bytes(direction) // 2 + scores
                record = Record(impl, problem, direction, "oom", "wall/1", reason="cannot allocate 3 GiB")
                if not scores or problem.q_len < 512:
                    times, memory = Time(seconds, seconds * 0.95, seconds * 1.1, 20), Memory(peak, peak // 2)
                    record = Record(impl, problem, direction, "ok", "wall/1", time_s=times, memory=memory)
                records.append(change(record))
    known = {impl: {"version": "1.0", "missing": None} for impl in speed}
    missing = {"flash-attn": {"version": None, "missing": "no module named flash_attn"}}
    machine = {"device": "Test CPU", "threads": 2}
    return Run(tuple(records), "smoke", machine, {"torch": "2.13.0"}, known | missing, "run.json")


def failed(record: Record, status: str, reason: str) -> Record:
    return dataclasses.replace(record, status=status, reason=reason, time_s=None, memory=None)


def seq_problems(*lengths: int) -> list[Problem]:
    return [Problem(1, 4, 4, s, s, 64, "fp32", mask) for s in lengths for mask in (FULL, CAUSAL)]


def sentences(run: Run) -> list[str]:
    frame = records_frame([run])
    return findings(frame, find_sweeps(frame), headline_problem(frame))


def seq_sheet(run: Run, metric: str = "time", direction: str = "fwd"):
    with settings():
        made = sweep_sheet(find_sweeps(records_frame([run]))["seq"][0], METRICS[metric], direction)
    assert made is not None
    return made


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def change(record: Record) -> Record:
        if record.impl == "tiled-seq" and record.problem.batch == 4:
            return failed(record, "error", "the <b>build</b> failed")
        if record.impl == "sdpa-flash" and record.problem.head_dim == 128 and record.direction is Direction.BWD:
            return failed(record, "unsupported", "head dim 128 has no backward")
        return record

    started = time.process_time()
    page = write_report([make_run(load_grid("smoke"), change=change)], tmp_path_factory.mktemp("report"))
    assert time.process_time() - started < 30  # 3 s here; the bound only catches what is badly wrong
    return page


class Loads(HTMLParser):
    """Collects what a page would load, its ids, its scripts and its local links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.scripts += tag == "script"
        self.ids += [given["id"] or ""] if "id" in given else []
        if "src" in given or tag in ("link", "iframe", "object", "embed", "image"):
            self.loaded.append(tag)
        self.links += [given["href"] or ""] if "href" in given else []
        assert not any(name.startswith("on") for name in given)


def test_page_holds_everything_and_loads_nothing(smoke: Path) -> None:
    text = smoke.read_text(encoding="utf-8")
    page = Loads(text)
    assert page.loaded == []
    assert page.scripts == 2  # the records, which are data, and our own
    assert "@import" not in text
    assert len(page.ids) == len(set(page.ids))
    local = [link for link in page.links if not link.startswith("#")]
    assert local
    assert all((smoke.parent / link).is_file() for link in local)
    assert all(link.removeprefix("#") in page.ids for link in page.links if link.startswith("#"))
    for words in ("How does forward time grow with sequence length?", "Test CPU", "2.13.0", "wall/1", "flash_attn"):
        assert words in text
    assert "the &lt;b&gt;build&lt;/b&gt; failed" in text
    assert "head dim 128 has no backward" in text


def test_every_panel_has_a_text_alternative(smoke: Path) -> None:
    panels = re.findall(r'<svg class="panel"[^>]*>', smoke.read_text(encoding="utf-8"))
    assert len(panels) > 12
    assert all(re.search(r'role="img" aria-label="[^"]{40,}"', panel) for panel in panels)
    assert any("naive: " in panel and "out of memory at 512" in panel for panel in panels)


def test_each_axis_metric_and_direction_has_its_files(smoke: Path) -> None:
    names = {path.name for path in (smoke.parent / "figures").iterdir()}
    for axis in ("seq", "batch", "heads", "embedding"):
        for metric in ("time", "tflops", "memory"):
            for direction in ("fwd", "bwd", "fwd-bwd"):
                assert {f"{metric}-by-{axis}-{direction}.{kind}" for kind in ("svg", "png")} <= names
    for path in (smoke.parent / "figures").glob("*.svg"):
        ElementTree.fromstring(path.read_bytes())


def test_csv_has_a_row_for_every_record_whatever_its_status(smoke: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((smoke.parent / "results.csv").read_text(encoding="utf-8"))))
    assert len(rows) == len(load_grid("smoke")) * len(SPEED) * 3
    assert {row["status"] for row in rows} == {"ok", "oom", "error", "unsupported"}
    one = next(row for row in rows if row["impl"] == "sdpa-flash" and row["speedup_over_naive"])
    base = next(
        row
        for row in rows
        if row["impl"] == "naive" and all(row[key] == one[key] for key in ("problem_id", "direction"))
    )
    assert float(one["speedup_over_naive"]) == pytest.approx(float(base["time_s"]) / float(one["time_s"]))


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    run = make_run(seq_problems(64, 128), directions=("fwd",))
    first, second = (write_report([run], tmp_path / name).parent for name in ("a", "b"))
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) > 8
    assert [(first / file).read_bytes() for file in files] == [(second / file).read_bytes() for file in files]


def test_figure_has_lines_spread_labels_and_scales() -> None:
    made = seq_sheet(make_run(seq_problems(64, 128, 256, 512)))
    assert made.title == "How does forward time grow with sequence length?"
    assert [panel.title for panel in made.panels] == ["Time (median), full mask", "Time (median), causal mask"]
    for panel in made.panels:
        ax = panel.ax
        lines = {line.get_label(): line for line in ax.lines}
        assert set(SPEED) <= set(lines)
        assert lines["sdpa-flash"].get_color() == look("sdpa-flash").light
        assert list(lines["sdpa-flash"].get_xdata()) == [64, 128, 256, 512]
        assert len({line.get_marker() for name, line in lines.items() if name in SPEED}) == len(SPEED)
        spreads = [item for item in ax.collections if str(item.get_gid()).endswith("-spread")]
        assert len(spreads) == len(SPEED)
        low, high = spreads[1].get_segments()[0][:, 1]
        assert low < lines["sdpa-flash"].get_ydata()[0] < high
        assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel()) == ("log", "log", "Sequence length")
        assert {"naive", "sdpa-flash", "tiled-seq"} <= {text.get_text() for text in ax.texts}
    assert made.panels[0].ax.get_ylim() == made.panels[1].ax.get_ylim()


def test_out_of_memory_is_drawn_where_it_happened() -> None:
    made = seq_sheet(make_run(seq_problems(128, 256, 512)))
    for panel in made.panels:
        marks = [line for line in panel.ax.lines if "-oom-" in str(line.get_gid())]
        assert [(line.get_marker(), line.get_color(), list(line.get_xdata())) for line in marks] == [
            ("x", look("naive").light, [512])
        ]
        assert "OOM" in {text.get_text() for text in panel.ax.texts}
        naive = next(line for line in panel.ax.lines if line.get_label() == "naive")
        assert list(naive.get_ydata()[:2] > 0) == [True, True]
        assert naive.get_ydata()[2] != naive.get_ydata()[2]  # NaN: no line to a point that was not measured
    (legend,) = made.figure.legends
    assert "out of memory" in [text.get_text() for text in legend.get_texts()]


def test_a_missing_point_breaks_the_line_and_is_named() -> None:
    def change(record: Record) -> Record:
        return failed(record, "error", "boom") if (record.impl, record.problem.q_len) == ("tiled-seq", 128) else record

    made = seq_sheet(make_run(seq_problems(64, 128, 256), change=change), "memory")
    assert made.notes == ["Not drawn, error: tiled-seq at 128. The reasons are under Failures."]


def test_noisy_is_drawn_hollow_and_never_compared() -> None:
    def change(record: Record) -> Record:
        return (
            dataclasses.replace(record, status="noisy", reason="spread 40 %") if record.impl == "sdpa-flash" else record
        )

    run = make_run(seq_problems(64, 128), change=change)
    hollow = [line for line in seq_sheet(run).panels[0].ax.lines if str(line.get_gid()).endswith("-hollow")]
    assert [line.get_markerfacecolor() for line in hollow] == ["none"]
    assert records_frame([run])["speedup"][records_frame([run])["impl"] == "sdpa-flash"].isna().all()
    assert not any(sentence.startswith("sdpa-flash") for sentence in sentences(run))


def test_sweeps_tell_their_families_apart() -> None:
    def found(grid: str, axis: str) -> list[tuple[str, int]]:
        frame = records_frame([make_run(load_grid(grid), {"flex": 1.0}, ("fwd",))])
        return [(sweep.fixed, len(sweep.values)) for sweep in find_sweeps(frame)[axis]]

    assert found("lab5-heads", "heads") == [("batch 16, length 1024, embedding 256, fp16", 5)]
    assert found("lab5-emb", "embedding") == [("batch 16, length 1024, 32 heads, fp16", 5)]
    assert ("batch × length 16384, 16 heads, head dim 128, bf16", 6) in found("fa-paper", "seq")
    assert found("lab5-seq", "batch") == []
    assert len(found("lab5", "batch")) == 8


@pytest.mark.parametrize("problems", [load_grid("smoke")[:1]])
def test_one_record_gives_bars_and_says_what_is_missing(tmp_path: Path, problems: list[Problem]) -> None:
    page = write_report([make_run(problems, {"naive": 1.0}, ("fwd",))], tmp_path)
    assert [path.name for path in (tmp_path / "figures").glob("*.svg")] == ["by-implementation-fwd.svg"]
    text = page.read_text(encoding="utf-8")
    assert "No figure: this run has no two problems that differ in sequence length alone." in text
    assert "naive alone was measured forward" in text


@pytest.mark.parametrize("fastest", [0.3, 0.02], ids=["bars", "dots on a log axis"])
@pytest.mark.parametrize("spread", [1.05, 3.0])
def test_the_text_beside_a_bar_fits_whatever_its_spread(fastest: float, spread: float) -> None:
    problem = Problem(1, 2, 2, 64, 64, 32, "fp32")
    medians = {"naive": 1.23e-3, "sdpa-math": 2.22e-3, "sdpa-flash": fastest * 2.22e-3}
    records = [
        Record(name, problem, Direction.FWD, "ok", "wall/4", time_s=Time(s, 0.95 * s, spread * s, 50))
        for name, s in medians.items()
    ]
    with settings():
        made = bars_sheet(records_frame([Run(tuple(records), "smoke", {}, {})]), "fwd", "somewhere")
        assert made is not None
        (panel,) = made.panels
        edge = panel.ax.get_window_extent().x1
        assert [text.get_text() for text in panel.ax.texts if text.get_window_extent().x1 > edge] == []


def test_bars_are_ordered_by_time_and_show_failures() -> None:
    run = make_run(seq_problems(512)[:1], directions=("fwd",))
    with settings():
        made = bars_sheet(records_frame([run]), "fwd", "somewhere")
    assert made is not None
    assert [label.get_text() for label in made.panels[0].ax.get_yticklabels()] == ["sdpa-flash", "tiled-seq", "naive"]
    assert "out of memory" in {text.get_text() for text in made.panels[0].ax.texts}


def test_empty_run_is_a_page_with_one_sentence(tmp_path: Path) -> None:
    page = write_report([Run((), "smoke", {}, {})], tmp_path)
    assert "The run holds no records: nothing was measured" in page.read_text(encoding="utf-8")
    assert (tmp_path / "results.csv").read_text(encoding="utf-8").count("\n") == 1


def test_only_failures_is_a_page_that_lists_them(tmp_path: Path) -> None:
    run = make_run(seq_problems(64, 128), change=lambda record: failed(record, "error", "no GPU & no hope"))
    text = write_report([run], tmp_path).read_text(encoding="utf-8")
    assert "No measurement succeeded: none of 36 records" in text
    assert "no GPU &amp; no hope" in text
    assert not list((tmp_path / "figures").iterdir())


def test_strange_names_stay_text(tmp_path: Path) -> None:
    speed = {"naive": 1.0, NASTY: 3.0, "'\"><img src=x onerror=alert(1)>": 2.0, "\ud800\x00核": 2.5}
    run = make_run(seq_problems(64, 512), speed, ("fwd",))
    extra = {"<i>": {"<b>": ["</dl>", None]}, "n": float("nan")}
    run = dataclasses.replace(run, machine={"device": NASTY}, environment=extra, implementations={NASTY: "?"})
    page = write_report([run], tmp_path)
    text = page.read_text(encoding="utf-8")
    parsed = Loads(text)
    assert parsed.scripts == 2  # the records, which are data, and our own
    assert parsed.loaded == []
    assert "<i>" not in text
    assert "$x^2$" in text
    assert all(re.fullmatch(r"[\w.-]+", name) for name in parsed.ids)
    for path in (tmp_path / "figures").glob("*.svg"):
        ElementTree.fromstring(path.read_bytes())
    assert "<script>" not in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_findings_follow_the_data() -> None:
    problems = seq_problems(64, 128, 256)
    before = sentences(make_run(problems))
    assert 3 <= len(before) <= MOST
    assert re.match(
        r"sdpa-flash is \d[\d.]*× faster than naive forward at batch 1, length 256.*; it needs \d+ % of", before[0]
    )

    def slower(record: Record) -> Record:
        if record.impl != "sdpa-flash" or record.problem.q_len < 256 or record.time_s is None:
            return record
        return dataclasses.replace(record, time_s=Time(1.0, 0.9, 1.1, 20))

    after = sentences(make_run(problems, change=slower))
    assert after[0].startswith("naive is fastest forward: tiled-seq takes")
    assert any(s.startswith("Fastest forward at every length from 64 to 256: sdpa-flash") for s in before)
    assert any(s.startswith("Fastest forward by length: sdpa-flash up to 128 and naive from 256") for s in after)


def test_findings_call_overlapping_spreads_level() -> None:
    def level(record: Record) -> Record:
        return dataclasses.replace(record, time_s=Time(1e-3 if record.impl == "naive" else 0.99e-3, 0.9e-3, 1.1e-3, 9))

    said = sentences(make_run(seq_problems(64), change=level))[0]
    assert said.startswith("sdpa-flash and naive are level forward")
    assert re.search(r"; sdpa-flash needs [\d.]+ % of naive's memory\.$", said)


def test_findings_count_what_failed() -> None:
    said = sentences(make_run(seq_problems(128, 512)))
    assert "6 of 36 measurements ran out of memory: naive 6 times, first at length 512." in said
    alone = sentences(make_run(seq_problems(512)))
    assert alone[0].startswith("sdpa-flash is fastest forward where naive is out of memory at batch 1, length 512")


def test_table_marks_the_best_and_says_where_the_baseline_failed() -> None:
    frame = records_frame([make_run(seq_problems(128, 512), directions=("fwd",))])
    time_table, _, memory_table = comparison_tables(frame)
    assert time_table.columns == ("naive", "sdpa-flash", "tiled-seq")
    assert [cell.best for cell in time_table.rows[0].cells] == [False, True, False]
    assert re.fullmatch(r"\d[\d.]*×", time_table.rows[0].cells[1].small)
    assert memory_table.rows[0].cells[1].small.endswith(" %")
    assert (time_table.rows[2].note, time_table.rows[2].cells[0].text) == ("naive: out of memory", "OOM")
    assert time_table.rows[2].cells[1].small == ""
    failures = failure_table(frame)
    assert failures is not None
    assert [cell.text for cell in failures.rows[0].cells][:2] == ["out of memory", "cannot allocate 3 GiB"]


def test_contracts_are_not_mixed(tmp_path: Path) -> None:
    def change(record: Record) -> Record:
        return dataclasses.replace(record, contract="events/1") if record.impl == "naive" else record

    mixed, pure = (make_run(seq_problems(64, 128), change=each) for each in (change, lambda record: record))
    left_out = "taken under 'events/1', which cannot be compared with 'wall/1'"
    text = html.unescape(write_report([mixed], tmp_path / "one").read_text(encoding="utf-8"))
    naive = sum(record.impl == "naive" for record in mixed.records)
    assert f"run.json: {naive} of {len(mixed.records)} records left out: {left_out}" in text
    with (tmp_path / "one" / "results.csv").open(newline="") as file:
        assert {row["contract"] for row in csv.DictReader(file)} == {"wall/1"}
    all_other = dataclasses.replace(mixed, records=tuple(r for r in mixed.records if r.impl == "naive"))
    for runs in ([pure, all_other], [all_other, pure]):
        with pytest.raises(BadRun, match=r"runs of different contracts \('events/1', 'wall/1'\).*a report of each"):
            write_report(runs, tmp_path / "two")
    with pytest.raises(BadRun, match="no run"):
        write_report([], tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_two_runs_keep_colours_and_carry_labels(tmp_path: Path) -> None:
    one = make_run(seq_problems(64, 128), {"naive": 1.0, "flex": 4.0}, ("fwd",))
    two = dataclasses.replace(one, machine={"device": "Other GPU"})
    frame = records_frame([one, two])
    assert sorted(frame["series"].unique()) == [
        f"{impl} · {machine}" for impl in ("flex", "naive") for machine in ("Other GPU", "Test CPU")
    ]
    assert (frame["speedup"].dropna() > 0).all()
    page = write_report([one, two], tmp_path)
    assert "Attention on Test CPU and Other GPU" in page.read_text(encoding="utf-8")


def test_unwritable_directory_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"^cannot write the report to .*file.*: "):
        write_report([Run((), "smoke", {}, {})], tmp_path / "file")


def test_import_is_light_and_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heavy = ("torch", "matplotlib", "pandas", "jinja2", "pytest")
    code = f"import sys, pytest_attn.report; print([name for name in {heavy} if name in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtra, match=r"needs Jinja, .*pip install 'pytest-attn\[report\]'"):
        write_report([Run((), "smoke", {}, {})], tmp_path)


def test_large_run_is_read_quickly() -> None:
    problems = [Problem(1, 4, 4, 16 + n, 16 + n, 64, "fp32", CAUSAL) for n in range(800)]
    run = make_run(problems)
    started = time.process_time()
    frame = records_frame([run])
    assert len(find_sweeps(frame)["seq"]) == 1
    assert all(len(table.rows) == 200 and table.left_out == 600 for table in comparison_tables(frame))
    assert to_csv(frame).count("\n") == len(run.records) + 1
    assert time.process_time() - started < 20
