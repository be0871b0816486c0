"""The example package, installed as a user would: found by its entry point, listed and passed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "my_attention_kernels"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that holds the wheels of pytest-attn and of the example, installed, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("example")
    for source in (ROOT, EXAMPLE):
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
        subprocess.run(build, check=True, capture_output=True)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index"]
    target = folder / "site"
    wheels = [str(wheel) for wheel in folder.glob("*.whl")]
    assert len(wheels) == 2
    subprocess.run([*pip, "--target", str(target), *wheels], check=True, capture_output=True)
    return target


def run(site, folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_attn_list_shows_it(site, tmp_path):
    result = run(site, tmp_path, "pytest_attn.cli", "list", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert re.search(r"^my-chunked +available ", result.stdout, re.MULTILINE), result.stdout


def test_it_passes_the_suite(site, tmp_path):
    command = ("pytest", "--pyargs", "pytest_attn.suite", "-m", "correctness", "--attn-impl", "my-chunked")
    result = run(site, tmp_path, *command)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "attn: implementations my-chunked" in result.stdout
    assert re.search(r"^my-chunked( +0\.\d\d){5} +\d+ ", result.stdout, re.MULTILINE), result.stdout


def test_its_readme_names_these_commands():
    text = (EXAMPLE / "README.md").read_text()
    assert "attn list\npytest --pyargs pytest_attn.suite -m correctness --attn-impl my-chunked\n" in text
