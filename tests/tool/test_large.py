"""Problems too large to judge whole: what becomes of a wrong one, a lack of memory, a crash, in the suite's run."""

from __future__ import annotations

import pytest

from tests.tool.nested import KERNELS, ROOT, repeat_commands, run, said

pytest_plugins = ["pytester"]

# As the suite's, of a size that any machine holds.
LAST = """
import pytest
from attn_impls import Direction, Problem
from pytest_attn.correctness.case import Case

@pytest.mark.correctness
@pytest.mark.parametrize("direction", [Direction.FWD, Direction.BWD])
def test_last(attn_impl, attn_last_check, direction):
    attn_last_check(Case(Problem(3, 4, 4, 33, 40, 16, "fp32")), direction)
"""
MORE = """
import os
from mykernels import right

def last_batch(q, k, v):
    return right(q, k, v) * (1 - (q.new_tensor(range(len(q))) == len(q) - 1).float()).reshape(-1, 1, 1, 1)

def no_gradient(q, k, v):
    return right(q, k, v).detach()

def no_room(q, k, v):
    raise RuntimeError("could not allocate 268435456 bytes")

def crash(q, k, v):
    os.abort()
"""


@pytest.fixture
def nested(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "200")
    (pytester.path / "conftest.py").write_text((ROOT / "conftest.py").read_text())
    (pytester.path / "test_last.py").write_text(LAST)
    (pytester.path / "mykernels.py").write_text(KERNELS)
    (pytester.path / "more.py").write_text(MORE)
    return pytester


def outcomes(result: pytest.RunResult) -> dict[str, str]:
    """Return what became of each test, by the names in its id."""
    found = {}
    for line in result.outlines:
        word, _, rest = line.partition(" ")
        if word in ("PASSED", "FAILED", "ERROR"):
            found[rest.partition("[")[2].partition("]")[0]] = word
    return found


@pytest.mark.parametrize("isolate", [[], ["--attn-isolate"]], ids=["here", "isolated"])
def test_a_lack_of_memory_is_skipped_and_all_else_that_goes_wrong_fails(
    nested: pytest.Pytester, isolate: list[str]
) -> None:
    names = ["mykernels:plain", "mykernels:full_card", "more:no_room", "mykernels:raising", "more:last_batch"]
    crash = ["more:crash"] if isolate else []
    options = ["--attn-device=cpu", *isolate, *(f"--attn-impl={name}" for name in (*crash, *names))]
    result = run(nested, "-m", "correctness", "-rA", *options)
    result.assert_outcomes(passed=2, skipped=4, failed=2 * len([*crash, "raising", "last_batch"]))
    wrong = (*crash, "mykernels:raising", "more:last_batch")
    failed = {f"{name}-{direction}": "FAILED" for name in wrong for direction in ("fwd", "bwd")}
    assert outcomes(result) == failed | {f"mykernels:plain-{direction}": "PASSED" for direction in ("fwd", "bwd")}
    text = said(result)
    assert "out of memory: " in text
    assert "could not allocate 268435456 bytes" in text
    assert "  raised RuntimeError: kernel exploded" in text
    assert "  WRONG out  error/budget " in text
    assert ("  the process ended by signal 6 (SIGABRT)" in text) == bool(crash)

    command = next(command for command in repeat_commands(result) if "more:last_batch" in command)
    assert command[:3] == ["test_last.py::test_last[more:last_batch-fwd]", "-m", "correctness"]
    again = run(nested, *command)
    again.assert_outcomes(failed=1)
    assert [line for line in again.outlines if "WRONG" in line] == [
        line for line in result.outlines if "WRONG" in line
    ][:1]


def test_gradients_of_what_declares_none_are_skipped(nested: pytest.Pytester) -> None:
    result = run(nested, "--attn-device=cpu", "--attn-impl=more:no_gradient", "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    assert "so its gradients are not checked" in said(result)
