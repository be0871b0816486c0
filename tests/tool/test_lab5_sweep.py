"""``attn lab5 --sweep``: the names of its files, its progress, and going on after what does not fit or fails."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from attn_impls import Capabilities, Direction, Implementation, Problem, Registry
from pytest_attn.cli import main
from pytest_attn.perf.instruments import Instruments
from pytest_attn.perf.measure import Measured
from pytest_attn.perf.record import Memory, Record, Time

KEYS = ["forward", "backward", "forward_backward", "peak_memory_usage(MB)"]
SMALL = ["--batch_size", "1", "--seq_len", "64", "--num_heads", "4", "--emb_dim", "64"]

Statuses = Callable[[Implementation, Problem, Direction], str]


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Run a sweep in an empty folder, with a stand-in for the measurement that gives every call a status."""
    monkeypatch.chdir(tmp_path)

    def run(*options: str, status: Statuses = lambda impl, problem, direction: "ok") -> int:
        def measure_alone(
            impl: Implementation, problem: Problem, direction: Direction, instruments: Instruments
        ) -> Measured:
            found = status(impl, problem, direction)
            ok = found == "ok"
            time, memory = (Time(1e-3, 1e-3, 1e-3, 3), Memory(0, 0)) if ok else (None, None)
            reason = None if ok else "the reason"
            contract = instruments.contract.id
            record = Record(impl.name, problem, direction, found, contract, reason, time_s=time, memory=memory)
            return Measured(record)

        monkeypatch.setattr("pytest_attn.perf.measure.measure_alone", measure_alone)
        return main(["lab5", "--sweep", "--device", "cpu", *options])

    return run


def names(folder: str = "results") -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_the_whole_sweep_has_the_scripts_files(sweep: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep() == 0
    axes = itertools.product((16, 32, 64), (512, 1024), (16, 32), (1024, 2048), ("Pytorch", "Flash2"), ("", "_causal"))
    assert names() == {f"result_bs{b}_sl{s}_nh{h}_ed{e}_{i}_causal{c}.json" for b, s, h, e, i, c in axes}
    assert len(names()) == 96
    assert "result_bs16_sl512_nh16_ed1024_Flash2_causal_causal.json" in names()
    assert all(list(json.loads((Path("results") / name).read_text())) == KEYS for name in names())
    captured = capsys.readouterr()
    assert captured.out == "96 results written to results: 96 ok, 0 oom, 0 failed\n"
    progress = [line for line in captured.err.splitlines() if line.startswith("[")]
    assert len(progress) == 96
    assert progress[0].startswith("[ 1/96] bs16 sl512 nh16 ed1024 Pytorch: forward 1.00 ms")
    assert "left" in progress[0]
    assert progress[-1].startswith("[96/96] bs64 sl1024 nh32 ed2048 Flash2 causal: ")
    assert "left" not in progress[-1]


def test_given_options_restrict_it(sweep: Callable[..., int]) -> None:
    options = ["--batch_size", "1", "2", "2", "--seq-len", "64", "--num_heads", "4", "--emb_dim", "64", "--causal"]
    assert sweep(*options, "--impl", "naive", "--output-dir", "else/where") == 0
    expected = {f"result_bs{batch}_sl64_nh4_ed64_naive_causal_causal.json" for batch in (1, 2)}
    assert names("else/where") == expected
    assert not Path("results").exists()


def test_causal_and_not_differ_in_the_problem_too(sweep: Callable[..., int]) -> None:
    seen = set()

    def status(impl: Implementation, problem: Problem, direction: Direction) -> str:
        seen.add((impl.name, problem.mask.kind))
        return "ok"

    assert sweep(*SMALL, status=status) == 0
    assert seen == set(itertools.product(("naive", "sdpa-flash"), ("full", "causal")))


def test_pairs_that_do_not_divide_are_skipped_with_one_line(
    sweep: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*SMALL, "--num_heads", "3", "4", "--batch_size", "1", "2") == 0
    captured = capsys.readouterr()
    assert captured.err.count("skipped: emb_dim 64 is not divisible by num_heads 3") == 1
    assert captured.out.startswith("8 results written")
    assert all("_nh4_" in name for name in names())


def test_out_of_memory_is_written_and_the_sweep_goes_on(
    sweep: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def status(impl: Implementation, problem: Problem, direction: Direction) -> str:
        return "oom" if impl.name == "naive" and problem.batch == 1 else "ok"

    assert sweep(*SMALL, "--batch_size", "1", "2", "--causal", status=status) == 0
    captured = capsys.readouterr()
    assert captured.out == "4 results written to results: 3 ok, 1 oom, 0 failed\n"
    data = json.loads(Path("results/result_bs1_sl64_nh4_ed64_Pytorch_causal_causal.json").read_text())
    nothing = {"time(s)": None, "FLOPS(TFLOPs/s)": None}
    assert data == dict.fromkeys(KEYS[:3], nothing) | {KEYS[3]: None}
    assert "forward: oom, the reason" in captured.err
    after = json.loads(Path("results/result_bs2_sl64_nh4_ed64_Pytorch_causal_causal.json").read_text())
    assert after["forward"]["time(s)"] == 1e-3


def test_a_failure_is_counted_and_is_code_1_but_the_sweep_goes_on(
    sweep: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def status(impl: Implementation, problem: Problem, direction: Direction) -> str:
        return "error" if impl.name == "naive" and direction is Direction.BWD else "ok"

    assert sweep(*SMALL, status=status) == 1
    captured = capsys.readouterr()
    assert captured.out == "4 results written to results: 2 ok, 0 oom, 2 failed\n"
    assert "backward: error, the reason" in captured.err
    assert len(names()) == 4


def test_what_an_implementation_never_claimed_is_skipped_with_a_line(
    sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = Implementation("full-only", lambda q, k, v, problem: q, Capabilities(masks=frozenset({"full"})))
    monkeypatch.setattr("attn_impls.discover", lambda: Registry({"full-only": kernel}))
    assert sweep(*SMALL, "--impl", "full-only") == 0
    captured = capsys.readouterr()
    assert "skipped: bs1 sl64 nh4 ed64 full-only causal: full-only has no causal mask" in captured.err
    assert captured.out == "1 result written to results: 1 ok, 0 oom, 0 failed\n"


def test_existing_files_are_overwritten_and_others_left(sweep: Callable[..., int]) -> None:
    Path("results").mkdir()
    old = Path("results/result_bs1_sl64_nh4_ed64_Pytorch_causal.json")
    old.write_text("old")
    Path("results/mine.txt").write_text("mine")
    assert sweep(*SMALL) == 0
    assert list(json.loads(old.read_text())) == KEYS
    assert Path("results/mine.txt").read_text() == "mine"


def test_ctrl_c_keeps_what_was_written(sweep: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    def status(impl: Implementation, problem: Problem, direction: Direction) -> str:
        if problem.batch == 2:
            raise KeyboardInterrupt
        return "ok"

    assert sweep(*SMALL, "--batch_size", "1", "2", status=status) == 130
    captured = capsys.readouterr()
    assert captured.out == "4 results written to results: 4 ok, 0 oom, 0 failed\n"
    assert captured.err.endswith("[5/8] bs2 sl64 nh4 ed64 Pytorch: \nattn lab5: interrupted\n")
    assert len(names()) == 4


def test_a_folder_that_cannot_be_written_is_said_before_measuring(
    sweep: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def status(impl: Implementation, problem: Problem, direction: Direction) -> str:
        raise AssertionError("measured although nothing could be written")

    Path("results").write_text("a file")
    assert sweep(*SMALL, status=status) == 2
    assert "attn lab5: cannot write to results: File exists" in capsys.readouterr().err


def test_a_strangers_function_makes_a_portable_name(sweep: Callable[..., int]) -> None:
    Path("sweep_kernel.py").write_text("def attention(q, k, v):\n    return q\n")
    assert sweep(*SMALL, "--impl", "sweep_kernel:attention") == 0
    assert names() == {"result_bs1_sl64_nh4_ed64_sweep_kernel_attention_causal.json"}
