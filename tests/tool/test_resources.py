"""Registers and local memory of compiled kernels: read from a library, kept by a run, told by the gate."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cpuinfo
import pytest
import torch

from attn_impls.implementation import Unavailable
from attn_impls.tiled import SMEM, _resources, build, resources, tiled_smem
from attn_impls.tiled.resources import resource_usage
from pytest_attn.gate import Outcome, Pair, Thresholds, Verdict, compare, exit_code, judge_pairs, suspects
from pytest_attn.gate.terminal import notes
from pytest_attn.gate.thresholds import Override
from pytest_attn.perf.record import Run
from pytest_attn.perf.resources import resources_of
from tests.tool.gate_runs import MACHINE, record, run_of
from tests.tool.nested import ROOT, lay_out, run, said
from tests.tool.nested import torch_is_whole as torch_is_whole

pytest_plugins = ["pytester"]

# What cuobjdump 13.1 printed for a library of nvcc 13.0, headers of some sections left out; the second architecture is
# that of another build of the same source.
RECORDED = """
Fatbin elf code:
================
arch = sm_90a
code version = [1,8]
host = linux
compile_size = 64bit

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN4attn36_GLOBAL__N__50087ca4_4_a_cu_bcb7b9ed1kIfEEvNS0_1PEPT_:
  REG:12 STACK:0 SHARED:1152 LOCAL:0 CONSTANT[0]:552 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _ZN4attn5spillIfLi60EEEvPT_:
  REG:32 STACK:7416 SHARED:1024 LOCAL:0 CONSTANT[0]:536 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function plain:
  REG:8 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:536 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin ptx code:
================
arch = sm_90
compressed

Fatbin elf code:
================
arch = sm_80

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN4attn36_GLOBAL__N__9f7711c0_4_a_cu_bcb7b9ed1kIfEEvNS0_1PEPT_:
  REG:14 STACK:0 SHARED:128 LOCAL:0 CONSTANT[0]:372 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
KERNEL = "attn::(anonymous namespace)::k<float>"


def use(registers: float, local_bytes: float = 0) -> dict[str, Any]:
    return {"registers": registers, "local_bytes": local_bytes, "shared_bytes": 1024}


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CUDA toolkit whose cuobjdump says what a test writes to its file ``said``, and a library beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tool = folder / "cuobjdump"
    tool.write_text(f"#!/bin/sh\n[ $1 = --dump-resource-usage ] && [ -f $2 ] && cat {tmp_path / 'said'}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    (tmp_path / "library.so").touch()
    return tmp_path


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="c++filt is not on PATH")
def test_kernels_are_named_as_they_are_written_and_counted_at_their_most(toolkit: Path) -> None:
    (toolkit / "said").write_text(RECORDED)
    assert resource_usage(toolkit / "library.so") == {
        KERNEL: {"registers": 14, "local_bytes": 0, "shared_bytes": 1152},
        "attn::spill<float, 60>": {"registers": 32, "local_bytes": 7416, "shared_bytes": 1024},
        "plain": {"registers": 8, "local_bytes": 0, "shared_bytes": 1024},
    }


def test_what_keeps_from_reading_a_library_is_said(toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def why(name: str = "library.so") -> str:
        with pytest.raises(Unavailable) as error:
            resource_usage(toolkit / name)
        return str(error.value)

    assert why("other.so") == "other.so is not built"
    assert why() == "cuobjdump ended with exit code 1: " + f"cat: {toolkit / 'said'}: No such file or directory"
    (toolkit / "said").write_text("Fatbin ptx code:\n")
    assert why() == "cuobjdump finds no kernel in library.so"
    monkeypatch.setenv("PATH", "")
    assert why() == "c++filt is not on PATH; it is part of binutils"
    monkeypatch.setattr(resources, "_cuobjdump", lambda: None)
    assert why() == "cuobjdump is not here; it is part of the CUDA toolkit, and of the package triton"


def test_families_that_share_a_library_tell_their_own_kernels(toolkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "library", lambda extension: toolkit / "library.so")
    line = " Function {}:\n  REG:8 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:0 TEXTURE:0 SURFACE:0 SAMPLER:0\n"
    names = ("_ZN4attn19smem_forward_kernelIfEEvPT_", "_ZN4attn18mma_forward_kernelIfEEvPT_", "copy_smem_tile")
    (toolkit / "said").write_text("".join(map(line.format, names)))
    assert list(_resources(SMEM)) == ["attn::smem_forward_kernel<float>"]


@pytest.mark.skipif(build.cuda_tool("nvcc") is None, reason="nvcc is not here")
@pytest.mark.skipif(resources._cuobjdump() is None, reason="cuobjdump is not here")
def test_our_kernel_does_not_spill(tmp_path: Path) -> None:
    (source,) = SMEM.extension.sources
    include = Path(torch.__file__).parent / "include"
    cubin = tmp_path / "smem.cubin"
    command = [str(build.cuda_tool("nvcc")), "-std=c++20", "-O3", "-DUSE_CUDA", "-arch=sm_90a", "-cubin"]
    subprocess.run([*command, f"-I{include}", str(source), "-o", str(cubin)], check=True, timeout=120)
    usage = {name.rpartition("::")[2]: one for name, one in resource_usage(cubin).items()}
    assert set(usage) == {f"smem_forward_kernel<{dtype}>" for dtype in ("float", "__half", "__nv_bfloat16")}
    for one in usage.values():
        # A block of 1024 threads leaves each 64 of a multiprocessor's 65536 registers.
        assert 16 <= one["registers"] <= 64
        assert one["local_bytes"] == 0


def test_asking_before_it_is_built_costs_nothing_and_is_no_error() -> None:
    if not build.library(SMEM.extension).exists():
        assert resources_of(tiled_smem) == {
            "missing": f"{build.library(SMEM.extension).name} is not built",
            "kernels": None,
        }
    code = "import sys, pytest_attn.perf.resources as r; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def built(kernels: Mapping[str, Any] | None, missing: str | None = None, **changes: object) -> Run:
    known = {"version": "1", "missing": None, "resources": {"missing": missing, "kernels": kernels}}
    return run_of(record(1e-3), implementations={"naive": known}, **changes)


def verdicts(base: Run, head: Run, **changes: Any) -> dict[tuple[str, str], Verdict]:
    found = compare(base, head, Thresholds(**changes), allow={"machine"})
    return {(verdict.problem_id, verdict.metric): verdict for verdict in found if verdict.direction == "build"}


@pytest.mark.parametrize(
    ("base", "head", "metric", "outcome", "code"),
    [
        (use(40), use(48), "registers", "same", "within"),
        (use(40), use(49), "registers", "slower", "grew"),
        (use(200), use(219), "registers", "same", "within"),
        (use(200), use(221), "registers", "slower", "grew"),
        (use(49), use(40), "registers", "faster", "shrank"),
        (use(40), use(40, 1), "local_bytes", "slower", "grew"),
        (use(40, 16), use(40, 16), "local_bytes", "same", "within"),
        (use(40, 16), use(40), "local_bytes", "faster", "shrank"),
    ],
)
def test_registers_have_a_limit_and_spills_none(
    base: dict[str, Any], head: dict[str, Any], metric: str, outcome: str, code: str
) -> None:
    verdict = verdicts(built({"k": base}), built({"k": head}))["k", metric]
    assert (verdict.outcome, verdict.code) == (outcome, code)
    assert (verdict.impl, verdict.base, verdict.head) == ("naive", base[metric], head[metric])


def test_a_spill_fails_stored_runs_and_pairs_and_is_not_measured_again() -> None:
    base, head = built({"k": use(40), "other": use(9)}), built({"k": use(40, 8), "other": use(9)})
    pairs = judge_pairs([Pair(base, head, "AB"), Pair(base, head, "BA")] * 4, Thresholds())
    for found in (compare(base, head), pairs):
        assert exit_code(found) == 1
        assert [v.key for v in found if v.outcome is Outcome.SLOWER] == [("naive", "k", "build")]
        assert found[0].sentence == "local_bytes grew, 0 -> 8"
        assert suspects(found) == []


def test_the_limits_of_a_kernel_can_be_set_by_a_pattern() -> None:
    sides = built({"k": use(40), "other": use(40)}), built({"k": use(80, 8), "other": use(80, 8)})
    warn = Override("naive k build", metrics={"registers": {"action": "warn"}, "local_bytes": {"action": "off"}})
    found = verdicts(*sides, cells=(warn,))
    assert found["k", "registers"].outcome is Outcome.UNSURE
    assert ("k", "local_bytes") not in found
    assert found["other", "registers"].outcome is found["other", "local_bytes"].outcome is Outcome.SLOWER


def test_a_kernel_of_one_side_is_a_note() -> None:
    base, head = built({"k": use(40), "old": use(40)}), built({"k": use(40), "new": use(250, 99)})
    assert {kernel for kernel, _ in verdicts(base, head)} == {"k"}
    assert exit_code(compare(base, head)) == 0
    assert "note: the compiled kernels of naive differ: without old; with new" in notes(base, head)


def test_a_side_that_cannot_tell_is_a_note_with_its_reason() -> None:
    here, unknown = built({"k": use(40)}), built(None, "cuobjdump is not here")
    said = "note: registers of naive are not compared, the {} lacks them: cuobjdump is not here"
    assert said.format("head") in notes(here, unknown)
    assert said.format("base") in notes(unknown, here)
    assert verdicts(here, unknown) == verdicts(unknown, here) == {}


def test_builds_for_two_devices_are_not_compared() -> None:
    other = built({"k": use(80)}, machine=MACHINE | {"device": "NVIDIA A100"})
    assert verdicts(built({"k": use(40)}), other) == {}


@pytest.mark.parametrize("odd", [None, [], {"k": 3}, {"k": use(float("nan"))}, {"k": {}}, {"k": {"registers": "40"}}])
def test_what_does_not_fit_counts_as_not_known(odd: Any) -> None:
    assert {metric for _, metric in verdicts(built({"k": use(40)}), built(odd))} <= {"local_bytes"}
    assert {metric for _, metric in verdicts(built(odd), built({"k": use(40)}))} <= {"local_bytes"}


COMPILED = """
import mykernels
from attn_impls import Implementation

def kernels():
    return {"compiled_kernel": {"registers": REGISTERS, "local_bytes": 0, "shared_bytes": 0}}

def fails():
    raise RuntimeError("no tool")

def attend(q, k, v, problem):
    return mykernels.right(q, k, v, problem.mask.kind == "causal")

attention = Implementation("compiled:attention", attend, resources=kernels)
unknown = Implementation("compiled:unknown", attend, resources=fails)
"""


def test_a_run_keeps_the_resources_of_what_it_timed_and_is_gated_by_them(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{pytester.path}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(cpuinfo, "get_cpu_info", dict)  # pytest-benchmark's takes a second a run
    # The second compiled.py is as long and may be as old, in seconds, as the first, whose bytecode would do for it.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    lay_out(pytester, "perf")
    (pytester.path / "pyproject.toml").write_text("[tool.pytest-attn.gate.time]\nstored_relative = '100000%'\n")
    options = ["-m", "perf", "--attn-device=cpu", "--attn-grid=tiny.toml", "--attn-direction=fwd"]
    named = [f"--attn-impl=compiled:{name}" for name in ("attention", "unknown")]

    (pytester.path / "compiled.py").write_text(COMPILED.replace("REGISTERS", "40"))
    first = run(pytester, *options, *named, "--attn-impl=naive", "--benchmark-json=base.json")
    assert first.ret == 0, said(first)
    found = json.loads((pytester.path / "base.json").read_text())["attn"]["implementations"]
    kernels = {"compiled_kernel": {"registers": 40, "local_bytes": 0, "shared_bytes": 0}}
    assert {name: known["resources"] for name, known in found.items() if "resources" in known} == {
        "compiled:attention": {"missing": None, "kernels": kernels},
        "compiled:unknown": {"missing": "no tool", "kernels": None},
    }

    (pytester.path / "compiled.py").write_text(COMPILED.replace("REGISTERS", "64"))
    sys.modules.pop("compiled", None)
    second = run(pytester, *options, named[0], "--attn-gate=base.json")
    assert second.ret == pytest.ExitCode.TESTS_FAILED, said(second)
    second.stdout.fnmatch_lines(["more *compiled:attention*compiled_kernel*build*registers*40*64*+60.0 %*"])
