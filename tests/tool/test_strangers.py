"""The plugin in the runs of projects that have nothing to do with attention: they find everything as they left it."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

from tests.tool.nested import ROOT

pytest_plugins = ["pytester"]

CONFTEST = """
from hypothesis import settings

settings.register_profile("ci", max_examples=7)
settings.register_profile("dev", max_examples=3)
"""
TESTS = """
import sys

import pytest
from hypothesis import settings

def test_profiles():
    assert settings().max_examples == 7
    assert settings.get_profile("dev").max_examples == 3

@pytest.mark.gpu
def test_on_a_device_that_torch_does_not_know():
    assert "torch" not in sys.modules

@pytest.mark.perf
def test_quick(benchmark):
    benchmark(lambda: None)
"""


@pytest.fixture(autouse=True)
def _laid_out(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)


def stranger(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    # Where it is installed it is there by its entry point, and would be there twice.
    installed = any(point.value == "pytest_attn.plugin" for point in metadata.entry_points(group="pytest11"))
    plugin = () if installed else ("-p", "pytest_attn.plugin")
    return pytester.runpytest_subprocess(*plugin, "-p", "no:cacheprovider", "--hypothesis-profile", "ci", *arguments)


def test_profiles_markers_and_machine_info_stay_theirs(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(f"{CONFTEST}\n\ndef pytest_sessionstart(session):\n    session.path.joinpath('made').mkdir()")
    stranger(pytester, "--benchmark-json", "made/run.json").assert_outcomes(passed=3)
    assert "hz_actual" in json.loads((pytester.path / "made" / "run.json").read_text())["machine_info"]["cpu"]


def test_a_marker_perf_of_theirs_runs_on_workers(pytester: pytest.Pytester) -> None:
    stranger(pytester, "-n", "1", "-m", "perf").assert_outcomes(passed=1)
