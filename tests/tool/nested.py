"""pytest inside pytest: a folder with the suite's tests in it and a stranger's implementations beside them."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from attn_impls import Direction, Problem, discover
from attn_impls.problem import CAUSAL
from pytest_attn.perf.measure import measure
from tests.tool.quick import CPU, QUICK

ROOT = Path(__file__).resolve().parents[2]

KERNELS = """
import torch

def right(q, k, v, causal=False, factor=1.0):
    scores = factor * (q.float() @ k.float().mT) / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(scores.new_ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))
    return (scores.softmax(-1) @ v.float()).to(q.dtype)

def off_by_one_percent(q, k, v, causal=False):
    return right(q, k, v, causal, 1.01)

def nan(q, k, v, causal=False):
    out = right(q, k, v, causal).clone()
    out[0, 0, 0, 0] = float("nan")
    return out

def short(q, k, v, causal=False):
    return right(q, k, v, causal)[:, :, :-1]

def double(q, k, v, causal=False):
    return right(q, k, v, causal).double()

def nothing(q, k, v, causal=False):
    right(q, k, v, causal)

def raising(q, k, v, causal=False):
    raise RuntimeError("kernel exploded")

def full_card(q, k, v, causal=False):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.50 GiB. GPU 0 has 1 GiB free.")

def unavailable(q, k, v, causal=False):
    from attn_impls import Unavailable
    raise Unavailable("no compiler")

def interrupted(q, k, v, causal=False):
    import os, signal
    if causal:
        os.kill(os.getpid(), signal.SIGINT)
    return right(q, k, v, causal)

def plain(q, k, v):
    return right(q, k, v)

def cache_too(q, k, v, cache, causal=False):
    return right(q, k, v, causal)
"""

# Of the contract's name, but short and never ``noisy``: what these runs show must not hang on how busy the machine is.
# A plugin of the folder, so that it also holds where pytest is a process of its own, and ends with the run. It is
# loaded after ours and its hook runs before: our hook picks the contract.
QUICK_CONTRACT = """
import dataclasses
import math
import sys

import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    from pytest_attn.perf import contract

    patch = pytest.MonkeyPatch()
    if "torch" in sys.modules:  # a run that is not ours must not import it
        from pytest_attn.perf import ceiling

        patch.setattr(ceiling, "_PRODUCT_ON_CPU", 64)
        patch.setattr(ceiling, "_COPY_ON_CPU", 2**16)
    quick = {"warmup_s": 0.0, "warmup_cap_s": 0.0, "min_rounds": 5, "max_rounds": 5, "noisy_above": math.inf}
    patch.setitem(contract._CONTRACTS, "wall", dataclasses.replace(contract._CONTRACTS["wall"], **quick))
    config.add_cleanup(patch.undo)
"""

TINY = """
[[problem]]
batch = 1
heads = 2
seq = 16
head_dim = 8
dtype = "fp32"
mask = ["full", "causal"]
"""


@pytest.fixture(scope="module", autouse=True)
def torch_is_whole() -> None:
    """Import all that registers operators with torch before a nested run does: it forgets what it imports itself."""
    naive = discover()["naive"]
    problem = Problem(1, 1, 1, 2, 2, 2, "fp32", CAUSAL)
    for direction in Direction:
        assert measure(naive, problem, direction, CPU, QUICK).status == "ok"


def lay_out(pytester: pytest.Pytester, suite: str) -> None:
    """Put the suite's tests (``correctness`` or ``perf``), ``mykernels.py`` and ``tiny.toml`` into the folder."""
    loaded = 'pytest_plugins = [*globals().get("pytest_plugins", []), "quick_contract"]'
    (pytester.path / "conftest.py").write_text(f"{(ROOT / 'conftest.py').read_text()}\n{loaded}\n")
    (pytester.path / "quick_contract.py").write_text(QUICK_CONTRACT)
    test = {"correctness": "test_equivalence.py", "perf": "test_perf.py"}[suite]
    shutil.copy(ROOT / "tests" / suite / test, pytester.path)
    (pytester.path / "mykernels.py").write_text(KERNELS)
    (pytester.path / "tiny.toml").write_text(TINY)


def lay_out_files(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """Put ``files`` beside ``mykernels.py`` into the folder, for children too, and make the output wide."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "200")
    conftest = (ROOT / "conftest.py").read_text()
    for name, text in {"conftest.py": conftest, "mykernels.py": KERNELS, **files}.items():
        (pytester.path / name).write_text(text)


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run pytest there, in this process."""
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)


def said(result: pytest.RunResult) -> str:
    """Everything that a run printed."""
    return f"{result.stdout}\n{result.stderr}"


def repeat_commands(result: pytest.RunResult) -> list[list[str]]:
    """Return the arguments of each command that the failures printed."""
    commands = [
        shlex.split(line.removeprefix("  repeat: ")) for line in result.outlines if line.startswith("  repeat: ")
    ]
    assert all(command[0] == "pytest" for command in commands)
    return [command[1:] for command in commands]
