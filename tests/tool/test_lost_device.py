"""A timed run ends when the device is lost, and blames who lost it."""

from __future__ import annotations

import cpuinfo
import pytest

from pytest_attn.perf.record import load_run
from tests.tool.nested import ROOT, lay_out, run, said
from tests.tool.nested import torch_is_whole as torch_is_whole

pytest_plugins = ["pytester"]

LOSING = """
from pathlib import Path

def lose(q, k, v, causal=False):
    Path("lost").touch()
    raise RuntimeError("an illegal memory access was encountered")
"""
FULL = "b1-h2-kv2-q16-k16-d8-fp32-full"


@pytest.mark.parametrize("behind", [[], ["mykernels:right"]], ids=["last", "not last"])
def test_an_error_of_its_own_is_not_blamed_for_a_lost_device(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, behind: list[str]
) -> None:
    def lost_device(device: object) -> str | None:
        return "illegal address" if (pytester.path / "lost").exists() else None

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(cpuinfo, "get_cpu_info", dict)  # pytest-benchmark's takes a second a run
    monkeypatch.setattr("pytest_attn.perf.measure.lost_device", lost_device)
    monkeypatch.setattr("pytest_attn.perf.device.lost_device", lost_device)
    lay_out(pytester, "perf")
    (pytester.path / "mylosing.py").write_text(LOSING)
    impls = [f"--attn-impl={name}" for name in ("mykernels:raising", "mylosing:lose", *behind)]
    options = ["-m", "perf", "--attn-device=cpu", "--attn-grid=tiny.toml", "--attn-direction=fwd"]
    result = run(pytester, *options, *impls, "--benchmark-json=run.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    sentence = f"mylosing:lose on {FULL} fwd: RuntimeError: an illegal memory access was encountered"
    assert f"the CUDA device is unusable (illegal address) after this:\n{sentence}" in said(result)
    found = {record.impl: record.reason for record in load_run(pytester.path / "run.json").records}
    assert found == {
        "mykernels:raising": "RuntimeError: kernel exploded",
        "mylosing:lose": "RuntimeError: an illegal memory access was encountered",
    }
