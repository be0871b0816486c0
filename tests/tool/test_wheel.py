"""What a user gets who has the wheel and an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MINE = """
def attention(q, k, v, causal=False):
    scores = {factor} * q.float() @ k.float().mT / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(scores.new_ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))
    return (scores.softmax(-1) @ v.float()).to(q.dtype)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that holds the installed wheel and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return target


def run_suite(site, folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "pytest", "--pyargs", "pytest_attn.suite", "-m", "correctness", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_suite_runs_from_the_wheel(site, tmp_path):
    result = run_suite(site, tmp_path, "--attn-impl", "sdpa-math")
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
    assert "correctness/test_equivalence.py" in result.stdout
    assert "tests/correctness" not in result.stdout


def test_a_right_function_passes(site, tmp_path):
    (tmp_path / "mykernels.py").write_text(MINE.format(factor=1.0))
    result = run_suite(site, tmp_path, "--attn-impl", "mykernels:attention")
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_scale_one_percent_off_fails_with_a_repeat_command(site, tmp_path):
    (tmp_path / "mykernels.py").write_text(MINE.format(factor=1.01))
    result = run_suite(site, tmp_path, "--attn-impl", "mykernels:attention")
    assert result.returncode == 1, result.stdout + result.stderr
    repeats = [line for line in result.stdout.splitlines() if line.startswith("  repeat: ")]
    assert len(repeats) >= 2
    assert repeats[0].startswith("  repeat: pytest --pyargs pytest_attn.suite -m correctness --attn-repro '{")
