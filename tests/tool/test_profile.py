"""``attn profile``: its rows, its reasons, its ends, on a program that prints what Nsight Compute does."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from attn_impls.problem import FULL, Direction, Mask, Problem
from pytest_attn.cli import main
from pytest_attn.counters import child
from pytest_attn.counters.document import BadProfile, Call, Profile, _least_read, load_profile
from pytest_attn.counters.figures import _families
from pytest_attn.counters.ncu import read_csv
from pytest_attn.counters.rows import BY_NAME, ROWS, SPILLS
from tests.tool.fake_ncu import FakeNcu
from tests.tool.nested import ROOT

SMEM = "void attn::(anonymous namespace)::smem_forward_kernel<float, (int)64>(attn::ForwardParams<float>)"
LOADED = "l1tex__t_bytes_pipe_lsu_mem_global_op_ld.sum"
SHARED_LOADS = "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum"
SHARED = "launch__shared_mem_per_block_dynamic"
TENSOR = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"
PLAIN = {
    "gpu__time_duration.sum": 2_500_000,
    LOADED: 1e9,
    "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum.per_second": 1e9,
    "smsp__thread_inst_executed_per_inst_executed.ratio": 24,
    "smsp__sass_thread_inst_executed_op_fadd_pred_on.sum": 5,
    "smsp__sass_thread_inst_executed_op_fmul_pred_on.sum": 7,
    "smsp__sass_thread_inst_executed_op_ffma_pred_on.sum": 100,
    "launch__registers_per_thread": 40,
    "launch__shared_mem_per_block_static": 1024,
    SHARED: 2048,
    TENSOR: 0,
}
GRID = '[[problem]]\nbatch = 2\nheads = 1\nseq = [256, 512]\nhead_dim = 64\ndtype = "fp32"\nmask = "full"\n'


@pytest.fixture
def ncu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNcu:
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path)
    return FakeNcu(tmp_path / "cuda", monkeypatch)


def lay_out(folder: Path) -> None:
    (folder / "two.toml").write_text(GRID)
    (folder / "one.toml").write_text(GRID.replace("[256, 512]", "256"))


def profile(*arguments: str, impl: str = "naive", grid: str = "one.toml") -> int:
    return main(["profile", "--impl", impl, "--grid", grid, *arguments])


def written() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path("attn-profile/profile.json").read_text())
    return document


def test_rows_are_worked_out_from_metrics(ncu: FakeNcu, capsys: pytest.CaptureFixture[str]) -> None:
    resources = {"missing": None, "kernels": {}}
    for registers, spilled in ((40, 16), (96, 512)):  # two instances of a template, told apart by their registers
        one = {"registers": registers, "local_bytes": spilled, "shared_bytes": 0}
        resources["kernels"][f"attn::(anonymous namespace)::smem_forward_kernel<{registers}>"] = one
    ncu.plan(kernels=[[SMEM, PLAIN]], resources=resources)
    assert profile(grid="two.toml") == 0
    document = written()
    first = document["calls"][0]
    wanted = {
        "duration": 2.5e-3,
        "flop_count_sp": 5 + 7 + 2 * 100,
        "shared_load_throughput": 128e9,
        "warp_execution_efficiency": 75.0,
        "registers": 40,
        "shared_memory": 3072,
        "tensor_pipe": 0,
        "local_memory": 16,
    }
    assert {name: first["values"][name] for name in wanted} == pytest.approx(wanted)
    assert [row["name"] for row in document["rows"]] == list(BY_NAME)
    assert document["machine"] == {"device": "H100"}
    assert document["ncu"] == "Nsight Compute 2025.3.1.0 (build 36398880) (public-release)"
    assert first["kernels"][0]["grid"] == "(8, 4, 1)"
    out = capsys.readouterr().out
    assert out.splitlines()[1].split() == ["q256", "q512"]
    assert [line.split()[1:] for line in out.splitlines() if line.startswith("flop_count_sp ")] == [["212", "212"]]
    assert out.endswith("2 calls profiled; attn-profile/profile.json; 4 charts in attn-profile\n")
    assert Path("attn-profile/throughput-h1-kv1-d64-fp32-full.png").stat().st_size > 10_000


def test_nsight_compute_is_asked_for_the_ranges_and_leaves_clocks_alone(ncu: FakeNcu) -> None:
    ncu.plan(kernels=[[SMEM, PLAIN]])
    assert profile("--direction", "bwd", grid="two.toml") == 0
    (arguments,) = ncu.calls
    options = dict(itertools.pairwise(arguments))
    assert options["--clock-control"] == "none"
    assert options["--print-units"] == "base"
    assert options["--page"] == "raw"
    assert options["--replay-mode"] == "kernel"
    assert options["--target-processes"] == "all"
    assert "--csv" in arguments
    assert "--cache-control" not in arguments, "its default flushes before each pass, as the page says"
    given = [after for word, after in itertools.pairwise(arguments) if word == "--nvtx-include"]
    assert given == ["attn-profile-0/", "attn-profile-1/"]
    assert {call.direction for call in load_profile("attn-profile/profile.json").calls} == {Direction.BWD}


def test_a_row_that_means_nothing_says_why(ncu: FakeNcu, capsys: pytest.CaptureFixture[str]) -> None:
    none = {f"l1tex__data_pipe_lsu_wavefronts_mem_shared_op_{op}.sum": 0 for op in ("ld", "st")}
    bare = PLAIN | none | {"launch__shared_mem_per_block_static": 0, SHARED: 0, "dram__bytes_read.sum": "n/a"}
    ncu.plan(kernels=[[SMEM, bare | {"l1tex__t_bytes_pipe_lsu_mem_global_op_st.sum": 0}]])
    assert profile() == 0
    (kernel,) = written()["calls"][0]["kernels"]
    reasons = {
        "shared_load_throughput": "the kernel has no shared memory",
        "shared_ld_bank_conflict": "the kernel has no shared memory",
        "shared_store_throughput": "the kernel has no shared memory",
        "gst_throughput": "no thread stores to global memory (TMA does so past this counter)",
        "dram_read_bytes": "Nsight Compute gives no dram__bytes_read.sum on this GPU",
        "local_memory": "the compiler's report is known of our own kernels only",
    }
    assert {name: kernel["notes"][name] for name in reasons} == reasons
    assert all(kernel["values"][name] is None for name in reasons)
    assert kernel["values"]["inst_executed"] == 1000
    out = capsys.readouterr().out
    (row,) = [line.split() for line in out.splitlines() if line.startswith("shared_load_throughput")]
    assert row[1] == "n/a"
    assert f"  {row[2]} the kernel has no shared memory\n" in out
    assert "no charts, which need two lengths\n" in out


@pytest.mark.parametrize(
    ("metric", "row", "reason"),
    [
        (LOADED, "gld_throughput", "no thread loads from global memory (TMA does so past this counter)"),
        (
            SHARED_LOADS,
            "shared_load_throughput",
            "no thread loads from shared memory (wgmma reads it past this counter)",
        ),
        (
            SHARED_LOADS.replace("_ld", "_st"),
            "shared_store_throughput",
            "no thread stores to shared memory (TMA and cp.async fill it past this counter)",
        ),
    ],
)
def test_what_no_thread_does_is_no_throughput_of_0(ncu: FakeNcu, metric: str, row: str, reason: str) -> None:
    ncu.plan(kernels=[["wgmma_forward_kernel", PLAIN | {metric: 0, f"{metric}.per_second": 0}]])
    assert profile() == 0
    (call,) = written()["calls"]
    assert (call["values"][row], call["notes"][row]) == (None, reason)


def test_loads_past_the_threads_are_not_called_a_throughput(ncu: FakeNcu) -> None:
    # q, k and v of the first problem hold 393 kB, which TMA has brought.
    ncu.plan(kernels=[["overlap_forward_kernel", PLAIN | {LOADED: 1000, TENSOR: 60}]])
    assert profile() == 0
    first = written()["calls"][0]
    assert first["values"]["gld_throughput"] is None
    assert first["notes"]["gld_throughput"].startswith("threads load 0.001 MB, while the call reads 0.393 MB of q")
    assert first["values"]["flop_count_sp"] == 212
    assert first["notes"]["flop_count_sp"] == "without what the tensor cores compute"


def test_no_kernel_is_the_main_one_of_a_call_of_many_like_it(ncu: FakeNcu) -> None:
    few = PLAIN | {LOADED: 150_000}  # of 393 kB: each of three loads its part
    ncu.plan(kernels=[[f"part{number}", few] for number in range(3)])
    assert profile() == 0
    assert written()["calls"][0]["values"]["gld_bytes"] == 450_000


def test_keys_that_the_mask_hides_from_every_query_need_not_be_loaded(ncu: FakeNcu) -> None:
    # One query sees 128 of 8192 keys: q 256 B, k and v 64 kB in place of 4.2 MB.
    shape = "q_len = 1\nkv_len = 8192"
    window = GRID.replace("seq = [256, 512]", shape).replace('"full"', '{kind = "window", left = 127, right = 0}')
    Path("one.toml").write_text(window)
    ncu.plan(kernels=[["decode", PLAIN | {LOADED: 140_000}]])
    assert profile() == 0
    assert written()["calls"][0]["values"]["gld_bytes"] == 140_000
    ncu.plan(kernels=[["decode", PLAIN | {LOADED: 50_000}]])
    assert profile() == 0
    assert "while the call reads 0.132 MB of q, k and v" in written()["calls"][0]["notes"]["gld_bytes"]


@pytest.mark.parametrize("mask", ["full", "causal", "causal_top_left", (2, 0), (0, 1), (None, 1), (1, None)])
def test_what_must_be_read_is_what_some_pair_of_the_mask_holds(mask: Any) -> None:
    chosen = Mask(mask) if isinstance(mask, str) else Mask("window", *mask)
    for q_len, kv_len in itertools.product(range(1, 8), repeat=2):
        problem = Problem(2, 6, 3, q_len, kv_len, 8, "bf16", chosen)
        low, high = chosen.diagonals(q_len, kv_len)
        pairs = [
            (i, j)
            for i, j in itertools.product(range(q_len), range(kv_len))
            if (low is None or low <= j - i) and (high is None or j - i <= high)
        ]
        rows = 6 * len({i for i, _ in pairs}) + 2 * 3 * len({j for _, j in pairs})
        assert _least_read(problem) == 2 * 2 * 8 * rows, problem.id


def test_a_call_of_several_kernels_has_their_sum_and_their_mean_over_time(
    ncu: FakeNcu, capsys: pytest.CaptureFixture[str]
) -> None:
    occupancy = "sm__warps_active.avg.pct_of_peak_sustained_active"
    long = PLAIN | {"gpu__time_duration.sum": 3000, occupancy: 80, "launch__registers_per_thread": 64}
    short = PLAIN | {"gpu__time_duration.sum": 1000, occupancy: 20, "launch__shared_mem_per_block_static": 0, SHARED: 0}
    ncu.plan(kernels=[["void softmax<int>(int)", short], ["gemm", long]])
    assert profile() == 0
    first = written()["calls"][0]
    wanted = {"duration": 4e-6, "achieved_occupancy": 65, "flop_count_sp": 424, "registers": 64}
    assert {name: first["values"][name] for name in wanted} == pytest.approx(wanted)
    assert first["values"]["shared_load_throughput"] == 128e9
    assert first["notes"]["shared_load_throughput"] == "of 1 of 2 kernels; the others: the kernel has no shared memory"
    assert [kernel["values"]["achieved_occupancy"] for kernel in first["kernels"]] == [20, 80]
    out = capsys.readouterr().out
    kernels = [line.split()[:4] for line in out.splitlines() if line.startswith(("softmax ", "gemm "))]
    assert kernels == [["softmax", "25", "%", "1"], ["gemm", "75", "%", "3"]]


def test_without_ranges_in_the_table_each_problem_has_its_process(ncu: FakeNcu) -> None:
    ncu.plan(kernels=[["one", PLAIN], ["two", PLAIN]], ranges=False)
    assert profile(grid="two.toml") == 0
    assert len(ncu.calls) == 3
    calls = load_profile("attn-profile/profile.json").calls
    assert [(call.problem.q_len, [kernel.name for kernel in call.kernels]) for call in calls] == [
        (256, ["one", "two"]),
        (512, ["one", "two"]),
    ]


def test_an_unknown_metric_costs_its_row_alone(ncu: FakeNcu) -> None:
    ncu.plan(kernels=[[SMEM, PLAIN]], unknown=["lts__t_bytes.sum", "sm__maximum_warps_per_active_cycle_pct"])
    assert profile(impl="naive,tiled-torch") == 0
    assert len(ncu.calls) == 2 + 1 + 1  # the second implementation is not asked for them again
    values = written()["calls"][-1]["values"]
    assert values["l2_bytes"] is None
    assert values["theoretical_occupancy"] is None
    assert values["registers"] == 40


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (
            {"log": "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access\n", "code": 1},
            "this user may not read the GPU's performance counters (ERR_NVGPUCTRPERM): run as root, or load",
        ),
        (
            {"log": "==ERROR== Cuda driver is not compatible with Nsight Compute.\n", "code": 9},
            "this Nsight Compute does not match the driver",
        ),
        (
            {"log": "==ERROR== Profiling failed because a driver resource was unavailable.\n", "code": 9},
            "another program, such as DCGM, holds the GPU's performance counters",
        ),
        ({"no_kernel": True}, "Nsight Compute profiled no kernel of naive"),
        ({"unavailable": "no nvcc"}, "naive cannot run here: no nvcc"),
        (
            {"log": "==ERROR== The application returned an error code (1).\n", "code": 1, "output": "ImportError: x"},
            "Nsight Compute ended with exit code 1 on naive: ImportError: x",
        ),
        ({"log": "==ERROR== lock file\n", "code": 1}, "Nsight Compute ended with exit code 1 on naive: lock file"),
        ({"signal": 9, "no_kernel": True}, "Nsight Compute ended with signal 9 on naive: it said nothing"),
        ({"log": "==PROF==\n", "sleep": 60}, "naive was stopped after 3 s under Nsight Compute (--timeout)"),
    ],
)
def test_what_stops_nsight_compute_is_one_sentence(
    ncu: FakeNcu, capsys: pytest.CaptureFixture[str], end: dict[str, Any], said: str
) -> None:
    ncu.plan(kernels=[[SMEM, PLAIN]], ends={"naive": end})
    assert profile("--timeout", "3" if "sleep" in end else "60") == 2
    captured = capsys.readouterr()
    assert f"attn profile: {said}" in captured.err
    assert captured.err.count("\n") == 2  # with the line of progress
    assert captured.out == ""
    assert not Path("attn-profile/profile.json").exists()


@pytest.mark.parametrize(("complaint", "runs"), [("ERR_NVGPUCTRPERM", 1), ("lock file", 2)])
def test_what_would_stop_every_implementation_ends_it_all(ncu: FakeNcu, complaint: str, runs: int) -> None:
    end = {"log": f"==ERROR== {complaint}\n", "code": 1}
    ncu.plan(kernels=[[SMEM, PLAIN]], ends={"naive": end, "tiled-torch": end})
    assert profile(impl="naive,tiled-torch") == 2
    assert len(ncu.calls) == runs


def test_ctrl_c_ends_what_runs_and_keeps_what_was_profiled(
    ncu: FakeNcu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            if "--metrics" in cast(list[str], self.args) and self not in started:
                started.append(self)
                if len(started) == 2:
                    raise KeyboardInterrupt
            return super().wait(timeout)

    ncu.plan(kernels=[[SMEM, PLAIN]], ends={"tiled-torch": {"sleep": 60}})
    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    assert profile(impl="naive,tiled-torch") == 130
    assert capsys.readouterr().err.endswith("attn profile: interrupted\n")
    assert [process.poll() for process in started] == [0, -signal.SIGKILL]
    assert [call.impl for call in load_profile("attn-profile/profile.json").calls] == ["naive"]


def test_what_was_profiled_before_a_failure_is_kept(ncu: FakeNcu, capsys: pytest.CaptureFixture[str]) -> None:
    ends = {"naive": {"statuses": {"1": ["oom", "OutOfMemoryError: 80 GiB"]}}, "tiled-torch": {"unavailable": "gone"}}
    ncu.plan(kernels=[[SMEM, PLAIN]], ends=ends)
    assert profile(impl="naive,tiled-torch", grid="two.toml") == 2
    captured = capsys.readouterr()
    assert captured.err.endswith("attn profile: tiled-torch cannot run here: gone\n")
    assert "naive, b2-h1-kv1-q512-k512-d64-fp32-full: oom, OutOfMemoryError: 80 GiB\n" in captured.out
    assert "1 call profiled, 1 oom; " in captured.out
    kept = load_profile("attn-profile/profile.json")
    assert [call.status for call in kept.calls] == ["ok", "oom"]
    assert kept.failures == ["tiled-torch cannot run here: gone"]


@pytest.mark.parametrize(("status", "code"), [("error", 1), ("oom", 0)])
def test_a_failed_call_is_exit_code_1(ncu: FakeNcu, status: str, code: int) -> None:
    ncu.plan(kernels=[[SMEM, PLAIN]], ends={"naive": {"statuses": {"0": [status, "RuntimeError: no"]}}})
    assert profile(grid="two.toml") == code
    assert profile() == 1  # where that was the only one


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--impl", "nope"], "unknown implementation 'nope'"),
        (["--impl", "naive,"], "--impl holds an empty name"),
        (["--impl", "naive", "--grid", "nope"], "unknown grid 'nope'"),
        (["--impl", "naive", "--device", "cpu"], "--device cpu: Nsight Compute counts on CUDA devices only"),
        (["--impl", "naive", "--device", "cuda:7"], "this machine has 1 CUDA device(s)"),
        (["--impl", "tiled-seq"], "tiled-seq cannot run on cuda: needs cpu"),
        (["--impl", "naive", "--timeout", "0"], "'0' is not a number of seconds above 0"),
        (["--impl", "naive", "--json", "/proc/nowhere/profile.json"], "cannot write to /proc/nowhere"),
        (["--impl", "naive", "--json", "."], "--json . is a folder"),
        (["--impl", "naive", "--json", "x.json", "-o", "one.toml"], "--output one.toml is not a folder"),
        ([], "the following arguments are required: --impl"),
    ],
)
def test_wrong_options_are_one_sentence(
    ncu: FakeNcu, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["profile", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("attn profile: ")
    assert said in err
    assert err.count("\n") == 1
    assert ncu.calls == []


def test_nothing_claimed_is_said_without_running(ncu: FakeNcu, capsys: pytest.CaptureFixture[str]) -> None:
    Path("one.toml").write_text(GRID.replace("head_dim = 64", "head_dim = 2048"))
    assert profile() == 2
    assert "nothing to profile; naive takes head_dim 1..1024, not 2048" in capsys.readouterr().err
    assert ncu.calls == []


def test_a_machine_without_a_gpu_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--impl", "naive"]) == 2
    assert capsys.readouterr().err == (
        "attn profile: device 'cuda' asked for, but this machine has no CUDA device that torch can use\n"
    )


def test_a_machine_without_nsight_compute_is_one_sentence(
    ncu: FakeNcu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("attn_impls.tiled.build.cuda_tool", lambda name: None)
    assert profile() == 2
    assert capsys.readouterr().err.startswith("attn profile: Nsight Compute (ncu) is not here; ")


def test_units_are_seconds_and_bytes_whatever_nsight_compute_prints() -> None:
    cells = {
        "gpu__time_duration.sum": ("usecond", "1,250.50", 1250.5e-6),
        "launch__shared_mem_per_block_static": ("Kbyte/block", "1.5", 1500.0),
        "dram__bytes_read.sum.per_second": ("Gbyte/second", "2", 2e9),
        "lts__t_bytes.sum.per_second": ("byte/nsecond", "3", 3e9),
        "sm__warps_active.avg.pct_of_peak_sustained_active": ("%", "12.5", 12.5),
    }
    lines = (["ID", "Kernel Name", *cells], ["", "", *(unit for unit, _, _ in cells.values())])
    lines += (["0", "one", *(text for _, text, _ in cells.values())],)
    text = "\n".join(",".join(f'"{cell}"' for cell in line) for line in lines)
    (row,) = read_csv(f"==PROF== Disconnected\n{text}\n")
    assert row.metrics == pytest.approx({name: value for name, (_, _, value) in cells.items()})


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "attn-profile", "schema": 99}'])
def test_another_file_is_no_profile(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BadProfile, match=r"x\.json"):
        load_profile(tmp_path / "x.json")


def test_the_page_has_every_row() -> None:
    page = (ROOT / "docs" / "profile.md").read_text()
    for row in (*ROWS, SPILLS):
        metrics = f"`{row.formula}`" if row.metrics else "the compiler"
        line = f"| `{row.name}` | {row.unit or 'count'} | {row.meaning} | {metrics} | {row.over} |"
        assert line in page.splitlines()


def test_no_point_of_a_chart_hides_another() -> None:
    shapes = [(1, 128, 1024), (1, 256, 1024), (1, 128, 2048), (1, 256, 2048), (2, 128, 1024), (2, 256, 1024)]
    shapes += [(1, 128, 128), (1, 256, 256)]
    problems = [Problem(b, 1, 1, q_len, kv_len, 16, "fp32", FULL) for b, q_len, kv_len in shapes]
    calls = [Call("naive", problem, Direction.FWD, "ok", values={"registers": 1.0}) for problem in problems]
    found = _families(Profile("mine", Direction.FWD, "ncu", calls=calls))
    assert [[(c.problem.batch, c.problem.q_len, c.problem.kv_len) for c in same] for _, same in found.values()] == [
        shapes[begin : begin + 2] for begin in (0, 2, 4, 6)
    ]
    assert [", 2048 keys" in words for words, _ in found.values()] == [False, True, False, False]


@pytest.mark.gpu
@pytest.mark.parametrize(("direction", "products"), [("fwd", 2), ("bwd", 4)])
def test_nsight_compute_itself_counts_the_flops_of_matrix_products(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    direction: str,
    products: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path)
    if profile("--direction", direction, grid="two.toml") != 0:
        said = capsys.readouterr().err
        if "ERR_NVGPUCTRPERM" in said or "(ncu) is not here" in said:
            pytest.skip(said)
        pytest.fail(said)
    for call in load_profile("attn-profile/profile.json").calls:
        assert len(call.kernels) > 2
        flops = call.values["flop_count_sp"]
        assert flops is not None
        # Matrix products in fp32, which a kernel may pad to whole tiles, and a softmax.
        assert 0.99 <= flops / (call.problem.flops() / 2 * products) <= 3
        assert {name for name, value in call.values.items() if value is None} <= {"local_memory"}


# the program that is profiled


@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_the_child_calls_once_unseen_and_once_in_a_range(monkeypatch: pytest.MonkeyPatch, direction: str) -> None:
    import torch

    calls: list[str] = []
    threads_of_autograd: list[bool] = []
    current = ["outside"]

    @contextlib.contextmanager
    def entered(number: int) -> Iterator[None]:
        current[0] = f"range {number}"
        yield
        current[0] = "outside"

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: torch.Tensor) -> torch.Tensor:
            calls.append(f"fwd {current[0]}")
            return q.clone()

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            calls.append(f"bwd {current[0]}")
            threads_of_autograd.append(torch._C._is_multithreading_enabled())
            return grads[0]

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        return Seen.apply(q) + 0 * (k + v)

    from attn_impls import Implementation, Registry

    mine = Implementation("mine", attention)
    monkeypatch.setattr("attn_impls.discover", lambda: Registry({"mine": mine}))
    monkeypatch.setattr(child, "_range", entered)
    problems = [Problem(1, 1, 1, n, n, 16, "fp32", FULL).to_dict() for n in (8, 16)]
    answers: list[dict[str, Any]] = []
    request = {"impl": "mine", "problems": problems, "direction": direction, "device": "cpu"}
    child.serve(request, lambda **known: answers.append(known))
    assert [call for call in calls if "range" in call] == [f"{direction} range 0", f"{direction} range 1"]
    assert calls.count(f"{direction} outside") == 2
    assert threads_of_autograd == [False] * (4 if direction == "bwd" else 0)
    assert [answer["status"] for answer in answers if "problem" in answer] == ["ok", "ok"]
    assert answers[0]["machine"]["device_type"] == "cpu"
    assert answers[-1] == {"resources": None}


def test_the_child_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    from attn_impls import Implementation, Registry

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        if problem.q_len == 8:
            raise torch.OutOfMemoryError("CUDA out of memory\nand more")
        return q

    monkeypatch.setattr("attn_impls.discover", lambda: Registry({"mine": Implementation("mine", attention)}))
    monkeypatch.setattr(child, "_range", lambda number: contextlib.nullcontext())
    request = {
        "impl": "mine",
        "problems": [Problem(1, 1, 1, n, n, 16, "fp32", FULL).to_dict() for n in (8, 16)],
        "direction": "fwd",
        "device": "cpu",
        "answers": str(tmp_path / "answers.jsonl"),
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    child.main(str(tmp_path / "request.json"))
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert answers[1:3] == [
        {"problem": 0, "status": "oom", "reason": "OutOfMemoryError: CUDA out of memory"},
        {"problem": 1, "status": "ok", "reason": None},
    ]


def test_the_child_tries_nothing_on_a_device_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from attn_impls import Implementation, Registry

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr("attn_impls.discover", lambda: Registry({"mine": Implementation("mine", attention)}))
    monkeypatch.setattr("pytest_attn.perf.device.lost_device", lambda device: "illegal memory access")
    problems = [Problem(1, 1, 1, n, n, 16, "fp32", FULL).to_dict() for n in (8, 16)]
    answers: list[dict[str, Any]] = []
    request = {"impl": "mine", "problems": problems, "direction": "fwd", "device": "cpu"}
    child.serve(request, lambda **known: answers.append(known))
    assert [answer["reason"] for answer in answers if "problem" in answer] == [
        "RuntimeError: an illegal memory access was encountered",
        "not tried: the device was lost before it (illegal memory access)",
    ]
