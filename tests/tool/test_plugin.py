"""The plugin in a stranger's run: wrong options, the header, what it imports, other plugins blocked."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from importlib import metadata
from types import ModuleType, SimpleNamespace

import pytest
import torch

from attn_impls import as_implementation, discover
from tests.tool.nested import ROOT, lay_out, run, said
from tests.tool.nested import torch_is_whole as torch_is_whole

pytest_plugins = ["pytester"]

ALL = "naive, sdpa-math, sdpa-flash, sdpa-efficient, sdpa-cudnn, flash-attn, flash-attn-4, flex, "
TESTS = 2 * len(discover())  # of the suite that lay_out() writes: forward and backward
REPRO = (
    '{"impl":"naive","direction":"fwd","regime":"normal","seed":0,"problem":{"batch":1,"heads":1,"kv_heads":1,'
    '"q_len":4,"kv_len":4,"head_dim":8,"dtype":"fp32"}}'
)


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU too, these runs have none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


REFUSED: list[tuple[list[str], str]] = [
    (["--attn-impl", "nave"], f"unknown implementation 'nave'; known: {ALL}"),
    (["--attn-impl", "nomodule:f"], "cannot import 'nomodule:f': ModuleNotFoundError: No module named 'nomodule'"),
    (["--attn-impl", "mykernels:gone"], "cannot import 'mykernels:gone': AttributeError: "),
    (["--attn-impl", "sys:path"], "'sys:path' is a list, not a function of (q, k, v, problem)"),
    (["--attn-impl", "sdpa-cudnn"], "implementation 'sdpa-cudnn' cannot run here: it needs cuda"),
    (["--attn-impl", "naive", "--attn-impl", "flex"], "implementation 'flex' cannot run here: it needs cuda"),
    (["--attn-grid", "big"], "--attn-grid: unknown grid 'big'; known: smoke, lab5, lab5-seq, "),
    (["--attn-grid", "gone.toml"], "--attn-grid: cannot read grid gone.toml: No such file or directory"),
    (["--attn-direction", "fwd,up"], "--attn-direction 'fwd,up': 'up' is not one of fwd, bwd, fwd_bwd"),
    (["--attn-direction", ""], "--attn-direction '': '' is not one of fwd, bwd, fwd_bwd"),
    (["--attn-timer", "sundial"], "--attn-timer 'sundial' is not one of auto, events, kineto, wall"),
    (["--attn-device", "cpu", "--attn-timer", "events"], "timer 'events' needs a CUDA device, not cpu"),
    (
        ["--attn-repro", REPRO.replace('"seed":0', '"seed":null')],
        "--attn-repro: seed None is not a whole number from 0",
    ),
    (["--attn-device", "tpu"], "device 'tpu' is not one of auto, cpu, cuda, cuda:0, cuda:1, ..."),
    (["--attn-device", "cuda"], "device 'cuda' asked for, but this machine has no CUDA device that torch can use"),
    (["--attn-untraced", "mykernels.py"], "--attn-untraced: mykernels.py is not JSON, or was cut short: "),
    (["--attn-impl", "json:loads"], "'json:loads' cannot be called as fn(q, k, v): too many positional arguments"),
    (
        ["--attn-impl", "mykernels:cache_too"],
        "'mykernels:cache_too' cannot be called as fn(q, k, v, causal=...): missing a required argument: 'cache'",
    ),
    (
        ["-m", "perf", "-n", "2", "--attn-impl", "naive"],
        "-m perf with -n would time workers that disturb each other; leave -n out",
    ),
    (["--attn-repro", "{"], "--attn-repro is not JSON: "),
    (["--attn-repro", "[]"], "--attn-repro needs exactly the keys direction, impl, problem, regime, seed"),
    (["--attn-repro", '{"impl":"naive"}'], "--attn-repro needs exactly the keys direction, impl, problem, regime, "),
    (["--attn-repro", REPRO.replace("fwd", "up")], "--attn-repro: direction 'up' is not one of fwd, bwd"),
    (["--attn-repro", REPRO.replace("naive", "nave")], f"unknown implementation 'nave'; known: {ALL}"),
    (["--attn-repro", REPRO.replace("normal", "odd")], "--attn-repro: regime 'odd' is not one of normal, tiny, "),
    (["--attn-repro", REPRO.replace("fp32", "fp64")], "--attn-repro: dtype 'fp64' is not one of fp32, bf16, fp16"),
    (["--attn-repro", REPRO.replace("seed", "sed")], "--attn-repro needs exactly the keys "),
    (["--attn-repro", REPRO.replace('"q_len":4,', "")], "--attn-repro: not a problem: "),
]


@pytest.mark.parametrize(
    ("arguments", "sentence"), REFUSED, ids=[f"{n} {' '.join(a)[:30]}" for n, (a, _) in enumerate(REFUSED)]
)
def test_a_wrong_value_is_refused_with_what_is_allowed(
    pytester: pytest.Pytester, arguments: list[str], sentence: str
) -> None:
    lay_out(pytester, "correctness")
    result = run(pytester, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line.strip()]
    assert line.startswith(f"ERROR: {sentence}")


def test_the_right_repeat_is_not_refused(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    run(pytester, "--attn-repro", REPRO).assert_outcomes(passed=1, deselected=1)
    run(pytester, "--attn-repro", REPRO.replace("fwd", "bwd")).assert_outcomes(passed=1, deselected=1)


def test_header_and_missing_implementations(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    result = run(pytester, "-rs", "-k", "sdpa and forward")
    result.assert_outcomes(passed=2, skipped=2, deselected=TESTS - 4)
    result.stdout.re_match_lines(
        [
            rf"attn: .+, {torch.get_num_threads()} threads, torch {torch.__version__[:3]}.*, contract wall/4$",
            r"attn: implementations naive, sdpa-math, sdpa-flash, tiled-torch, tiled-seq, tiled-cpu$",
            r"attn: missing sdpa-efficient, sdpa-cudnn, flash-attn, flash-attn-4, flex, triton, "
            r"tiled-global, tiled-smem, tiled-pad, tiled-coalesced, tiled-unroll, tiled-regs, tiled-mma, "
            r"tiled-async, tiled-wgmma, tiled-ws, tiled-overlap, tiled-hopper: needs cuda$",
        ]
    )
    result.stdout.fnmatch_lines_random(["SKIPPED*sdpa-efficient: needs cuda", "SKIPPED*sdpa-cudnn: needs cuda"])


def test_summary_of_accuracy(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    result = run(pytester, "--attn-impl", "sdpa-math", "-k", "forward")
    result.assert_outcomes(passed=1, deselected=1)
    result.stdout.fnmatch_lines(["*attention: worst error over budget*"])
    result.stdout.re_match_lines(
        [
            r" +element +rms +row +gain +scale +cases +worst at$",
            r"sdpa-math( +0\.\d\d){5} +\d+ +(out|lse) b\d+-h.+/\w+/\d+$",
        ]
    )


def test_only_what_is_asked_for_is_run(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    result = run(pytester, "--attn-impl", "sdpa-math", "--attn-impl", "naive", "--attn-impl", "naive", "--co", "-q")
    assert [line.partition("::")[2] for line in result.outlines if "::" in line] == [
        "test_forward[sdpa-math]",
        "test_gradients[sdpa-math]",
        "test_forward[naive]",
        "test_gradients[naive]",
    ]


def test_collect_only_of_timed_cells(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "perf")
    result = run(pytester, "--collect-only", "-q", "--attn-impl", "naive", "--attn-grid", "tiny.toml")
    assert result.ret == 0
    cells = [line.partition("::")[2] for line in result.outlines if "::" in line]
    assert cells == [
        f"test_perf[naive-b1-h2-kv2-q16-k16-d8-fp32-{mask}-{direction}]"
        for mask in ("full", "causal")
        for direction in ("fwd", "bwd", "fwd_bwd")
    ]


def test_default_grid_on_a_cpu_is_smoke(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "perf")
    result = run(pytester, "--collect-only", "-q", "--attn-impl", "naive", "--attn-direction", "bwd")
    assert sum("::" in line for line in result.outlines) == 18


def test_a_broken_entry_point_does_not_break_the_run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.entry_points
    broken = SimpleNamespace(name="bad-kernels", value="no_such_module_at_all", group="attn_impls")
    monkeypatch.setattr(
        metadata, "entry_points", lambda **wanted: [broken] if wanted == {"group": "attn_impls"} else real(**wanted)
    )
    lay_out(pytester, "correctness")
    result = run(pytester, "-k", "naive and forward")
    result.assert_outcomes(passed=1, deselected=TESTS - 1)
    result.stdout.fnmatch_lines(
        ["attn: missing bad-kernels: ModuleNotFoundError: No module named 'no_such_module_at_all'"]
    )
    named = run(pytester, "--attn-impl", "bad-kernels")
    assert named.ret == pytest.ExitCode.USAGE_ERROR
    assert "implementation 'bad-kernels' did not import: ModuleNotFoundError" in said(named)


def test_a_probe_that_raises_does_not_break_the_run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    def probe() -> str | None:
        raise KeyError("DRIVER")

    odd = as_implementation(lambda q, k, v: q, "odd")
    strange = ModuleType("strange")
    strange.odd = dataclasses.replace(odd, probe=probe)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "strange", strange)
    real, found = metadata.entry_points, SimpleNamespace(name="odd", value="strange", group="attn_impls")
    monkeypatch.setattr(
        metadata, "entry_points", lambda **wanted: [found] if wanted == {"group": "attn_impls"} else real(**wanted)
    )
    lay_out(pytester, "correctness")
    result = run(pytester, "-k", "naive and forward")
    result.assert_outcomes(passed=1, deselected=TESTS + 1)
    result.stdout.fnmatch_lines(["attn: missing odd: its probe raised KeyError: 'DRIVER'"])


def test_without_the_benchmark_plugin(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    run(pytester, "-p", "no:benchmark", "--attn-impl", "naive", "-k", "forward").assert_outcomes(passed=1, deselected=1)


def test_timing_without_the_benchmark_plugin(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "perf")
    result = run(
        pytester, "-p", "no:benchmark", "--attn-impl", "naive", "--attn-grid", "tiny.toml", "--attn-direction", "fwd"
    )
    assert result.ret == 1
    assert "timing needs the plugin pytest-benchmark, which is blocked or not installed" in said(result)


def test_gpu_tests_skip_without_a_device(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    pytester.makepyfile("import pytest\n\n@pytest.mark.gpu\ndef test_it(attn_problem):\n    assert False")
    result = run(pytester, "-rs", "-k", "test_it", "--strict-markers")
    result.assert_outcomes(skipped=1, deselected=TESTS)
    result.stdout.fnmatch_lines(["SKIPPED*needs a CUDA device"])


def test_markers_and_options_are_documented(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    result = run(pytester, "--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.correctness:*", "@pytest.mark.perf:*", "@pytest.mark.gpu:*"])
    text = said(run(pytester, "--help"))
    for option in ("impl", "device", "grid", "direction", "timer", "repro"):
        assert f"--attn-{option}=" in text, option


def test_a_run_that_is_not_ours_imports_no_torch(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    (pytester.path / "test_equivalence.py").unlink()
    pytester.makepyfile(
        """
        import sys

        def test_modules(request):
            assert request.config.pluginmanager.has_plugin("pytest_attn.plugin") or "pytest_attn.plugin" in sys.modules
            assert "torch" not in sys.modules
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    assert "attn:" not in said(result)


def python(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return ran.stdout


@pytest.mark.parametrize("module", ["attn_impls", "attn_impls.grids", "pytest_attn.plugin", "pytest_attn.perf.record"])
def test_imports_no_torch(module: str) -> None:
    heavy = ("torch", "numpy", "pandas", "matplotlib", "jinja2", "hypothesis")
    found = python(f"import sys, {module}; print(*(name for name in {heavy} if name in sys.modules))")
    assert found.split() == []


def test_the_plugin_is_imported_in_no_time() -> None:
    clock = "time.process_time()"
    code = f"import time, pytest; begin = {clock}; import pytest_attn.plugin; print({clock} - begin)"
    # Processor time, and the best of some: what else the machine does is not the plugin's.
    least = min(float(python(code)) for _ in range(5))
    print(f"import pytest_attn.plugin: {1e3 * least:.1f} ms beyond pytest")
    assert least < 0.060  # 30 ms are promised; a slow machine may take twice that
