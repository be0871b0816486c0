"""``attn lab5``, one point: its keys, its numbers, what it says on standard error. The measurement is a stand-in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attn_impls import Capabilities, Direction, Implementation, Problem, Registry, Unavailable
from pytest_attn.cli import main
from pytest_attn.perf.contract import Contract
from pytest_attn.perf.instruments import Instruments
from pytest_attn.perf.measure import Measured
from pytest_attn.perf.record import Memory, Record, Time

KEYS = ["forward", "backward", "forward_backward", "peak_memory_usage(MB)"]
SECONDS = {Direction.FWD: 0.001, Direction.BWD: 0.002, Direction.FWD_BWD: 0.003}
POINT = ["--batch_size", "2", "--seq_len", "128", "--num_heads", "4", "--emb_dim", "256", "--device", "cpu"]

Answer = Callable[[Problem, Direction], tuple[str, str | None]]
Call = tuple[str, Problem, Direction, torch.device, Contract]


class FakeMeasure:
    """Answers as ``pytest_attn.perf.measure.measure_alone`` does, at once; ``answer`` gives status and reason."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.answer: Answer = lambda problem, direction: ("ok", None)

    def __call__(
        self, impl: Implementation, problem: Problem, direction: Direction, instruments: Instruments
    ) -> Measured:
        device, contract = instruments.device, instruments.contract
        self.calls.append((impl.name, problem, direction, device, contract))
        status, reason = self.answer(problem, direction)
        if status != "ok":
            return Measured(Record(impl.name, problem, direction, status, contract.id, reason))
        median = SECONDS[direction]
        time = Time(median, median, median, contract.min_rounds)
        memory = Memory(3 * 2**20, 2**20)
        return Measured(Record(impl.name, problem, direction, "ok", contract.id, time_s=time, memory=memory))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMeasure:
    fake = FakeMeasure()
    monkeypatch.setattr("pytest_attn.perf.measure.measure_alone", fake)
    monkeypatch.chdir(tmp_path)
    return fake


def result(path: str = "benchmark_result.json") -> dict[str, Any]:
    data: dict[str, Any] = json.loads(Path(path).read_text())
    return data


def test_the_keys_and_numbers_are_exactly_the_scripts(measured: FakeMeasure) -> None:
    assert main(["lab5", *POINT, "--impl", "Pytorch"]) == 0
    data = result()
    assert list(data) == KEYS
    # 4 * head_dim 64 * 128 * 128 pairs * 2 * 4 forward, 2.5 and 3.5 times that for the others
    forward = 4 * 64 * 128 * 128 * 2 * 4
    for name, seconds, factor in zip(KEYS, (0.001, 0.002, 0.003), (1, 2.5, 3.5), strict=False):
        assert list(data[name]) == ["time(s)", "FLOPS(TFLOPs/s)"]
        assert data[name]["time(s)"] == seconds
        assert data[name]["FLOPS(TFLOPs/s)"] == pytest.approx(forward * factor / seconds / 1e12)
    # 3 MiB over the inputs, and q, k, v, dout of 2 * 4 * 128 * 64 fp16 numbers each
    assert data["peak_memory_usage(MB)"] == 3 + 4 * (2 * 4 * 128 * 64 * 2) / 2**20


def test_what_is_measured_is_what_was_asked(measured: FakeMeasure) -> None:
    assert main(["lab5", *POINT, "--impl", "Pytorch", "--causal", "--repeats", "7"]) == 0
    assert [call[2] for call in measured.calls] == list(Direction)
    for impl, problem, _, device, contract in measured.calls:
        assert (impl, problem.id) == ("naive", "b2-h4-kv4-q128-k128-d64-fp16-causal")
        assert device == torch.device("cpu")
        assert (contract.min_rounds, contract.max_rounds, contract.timer) == (7, 7, "wall")


def test_the_defaults_are_those_of_the_issue(measured: FakeMeasure) -> None:
    assert main(["lab5", "--device", "cpu"]) == 0
    _, problem, _, _, contract = measured.calls[0]
    assert problem.id == "b32-h32-kv32-q1024-k1024-d64-fp16-full"
    assert contract.min_rounds == 30
    assert Path("benchmark_result.json").exists()


def test_both_spellings_are_taken(measured: FakeMeasure) -> None:
    dashed = [word.replace("_", "-") if word.startswith("--") else word for word in POINT]
    assert dashed != POINT
    assert main(["lab5", *dashed, "--impl", "naive", "--output", "deep/er/mine.json"]) == 0
    assert list(result("deep/er/mine.json")) == KEYS
    assert measured.calls[0][1].id == "b2-h4-kv4-q128-k128-d64-fp16-full"


def test_an_existing_file_is_overwritten(measured: FakeMeasure) -> None:
    Path("benchmark_result.json").write_text("old" * 10_000)
    assert main(["lab5", *POINT, "--impl", "naive"]) == 0
    assert list(result()) == KEYS


def test_flash2_without_the_package_is_sdpa_flash_and_says_so(
    measured: FakeMeasure, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lab5", *POINT, "--impl", "Flash2"]) == 0
    assert measured.calls[0][0] == "sdpa-flash"
    captured = capsys.readouterr()
    assert "Flash2 is sdpa-flash here, because flash-attn is missing" in captured.err
    assert "on the CPU, in fp16" in captured.err
    assert captured.out.splitlines()[-1] == "benchmark_result.json"
    assert "forward 1.00 ms, backward 2.00 ms, forward_backward 3.00 ms, peak 3.5 MB" in captured.out


def identity(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
    return q


def test_flash2_with_the_package_is_the_package(
    measured: FakeMeasure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("attn_impls.discover", lambda: Registry({"flash-attn": Implementation("flash-attn", identity)}))
    assert main(["lab5", *POINT, "--impl", "Flash2"]) == 0
    assert measured.calls[0][0] == "flash-attn"
    assert "sdpa-flash" not in capsys.readouterr().err


def test_a_strangers_function_is_measured(measured: FakeMeasure) -> None:
    Path("strangers_kernel.py").write_text("def attention(q, k, v, causal=False):\n    return q\n")
    assert main(["lab5", *POINT, "--impl", "strangers_kernel:attention", "--causal"]) == 0
    assert measured.calls[0][0] == "strangers_kernel:attention"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--emb_dim", "100", "--num_heads", "3"], "emb_dim 100 is not divisible by num_heads 3"),
        (["--batch_size", "0"], "'0' is not a whole number above 0"),
        (["--seq_len", "-5"], "'-5' is not a whole number above 0"),
        (["--repeats", "many"], "'many' is not a whole number above 0"),
        (["--impl", "nope"], "unknown implementation 'nope'"),
        (["--impl", "nope:nope"], "cannot import 'nope:nope'"),
        (["--impl", "flash-attn"], "flash-attn cannot run on cpu"),
        (["--device", "tpu"], "device 'tpu' is not one of"),
        (["--batch_size", "1", "2"], "--batch_size takes one value unless --sweep is given, not 2"),
        (["--output", "."], "--output . is a folder"),
        (["--output-dir", "x"], "--output-dir belongs to --sweep"),
        (["--sweep", "--output", "x"], "give --output-dir instead of --output"),
        (["--sweep", "--emb_dim", "100", "--num_heads", "3"], "nothing to measure; skipped: emb_dim 100 is not"),
    ],
)
def test_bad_input_is_a_sentence_and_code_2(
    measured: FakeMeasure, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main(["lab5", "--device", "cpu", *options]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert all(line.startswith("attn lab5: ") for line in err.splitlines())
    assert measured.calls == []
    assert not list(Path().glob("*.json"))


def test_out_of_memory_is_a_result_with_the_same_keys(
    measured: FakeMeasure, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(problem: Problem, direction: Direction) -> tuple[str, str | None]:
        return ("ok", None) if direction is Direction.FWD else ("oom", "asked for 4.00 GiB")

    measured.answer = answer
    assert main(["lab5", *POINT, "--impl", "naive"]) == 0
    data = result()
    assert list(data) == KEYS
    assert data["forward"]["time(s)"] == 0.001
    assert data["backward"] == data["forward_backward"] == {"time(s)": None, "FLOPS(TFLOPs/s)": None}
    assert data["peak_memory_usage(MB)"] is None
    err = capsys.readouterr().err
    assert "backward: oom, asked for 4.00 GiB" in err
    assert "forward_backward: oom, not tried, backward ran out of memory" in err
    assert len(measured.calls) == 2


@pytest.mark.parametrize("status", ["error", "host_bound", "noisy"])
def test_a_failure_keeps_what_was_measured_and_is_code_1(
    measured: FakeMeasure, capsys: pytest.CaptureFixture[str], status: str
) -> None:
    measured.answer = lambda problem, direction: ("ok", None) if direction is Direction.FWD else (status, "NaN")
    assert main(["lab5", *POINT, "--impl", "naive"]) == 1
    assert result()["forward"]["time(s)"] == 0.001
    assert result()["backward"]["time(s)"] is None
    assert f"backward: {status}, NaN" in capsys.readouterr().err


def test_a_build_that_fails_when_first_used_is_a_failure_not_a_traceback(
    measured: FakeMeasure, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(problem: Problem, direction: Direction) -> tuple[str, str | None]:
        raise Unavailable("nvcc: unknown option")

    measured.answer = answer
    assert main(["lab5", *POINT, "--impl", "naive"]) == 1
    assert "forward: error, nvcc: unknown option" in capsys.readouterr().err
    assert list(result()) == KEYS


def test_a_kernel_without_backward_has_its_forward(
    measured: FakeMeasure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = Implementation("half", identity, Capabilities(backward=False))
    monkeypatch.setattr("attn_impls.discover", lambda: Registry({"half": kernel}))
    measured.answer = lambda problem, direction: (
        ("ok", None) if direction is Direction.FWD else ("unsupported", "has no backward")
    )
    assert main(["lab5", *POINT, "--impl", "half"]) == 0
    assert result()["forward"]["time(s)"] == 0.001
    assert result()["backward"]["time(s)"] is None
    assert "backward: unsupported, has no backward" in capsys.readouterr().err


def test_a_problem_outside_the_claims_is_refused(
    measured: FakeMeasure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = Implementation("bf16-only", identity, Capabilities(dtypes=frozenset({"bf16"})))
    monkeypatch.setattr("attn_impls.discover", lambda: Registry({"bf16-only": kernel}))
    assert main(["lab5", *POINT, "--impl", "bf16-only"]) == 2
    assert "it does not take fp16" in capsys.readouterr().err


def test_for_real_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    point = ["--batch_size", "1", "--seq_len", "64", "--num_heads", "2", "--emb_dim", "64", "--repeats", "3"]
    for impl in ("Pytorch", "Flash2"):
        assert main(["lab5", *point, "--impl", impl, "--device", "cpu", "--causal"]) == 0
        data = result()
        assert list(data) == KEYS
        assert all(data[name]["time(s)"] > 0 and data[name]["FLOPS(TFLOPs/s)"] > 0 for name in KEYS[:3])
        # never less than the inputs, the output and three gradients
        assert data["peak_memory_usage(MB)"] >= 8 * (1 * 2 * 64 * 32 * 2) / 2**20
