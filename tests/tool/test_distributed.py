"""Runs under pytest-xdist: what its workers find and refuse is said by the process that reports."""

from __future__ import annotations

import pytest

from pytest_attn.session import Accuracy
from tests.tool.nested import lay_out, run, said

pytest.importorskip("xdist")

pytest_plugins = ["pytester"]
OPTIONS = ("-n", "2", "--attn-device", "cpu", "--attn-impl", "naive")


def test_accuracy_of_all_workers_is_one_table(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    result = run(pytester, *OPTIONS)
    result.assert_outcomes(passed=2)
    alone = run(pytester, *OPTIONS[2:])
    assert cases_of(result) == cases_of(alone) > 0


def cases_of(result: pytest.RunResult) -> int:
    """The number of cases in the summary's line of the implementation, after the ratios of five rules."""
    (line,) = [line for line in result.outlines if line.startswith("naive ")]
    return int(line.split()[6])


def test_what_a_worker_refuses_is_a_usage_error(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    pytester.makefile(".txt", skips="no_such_test  # gone")
    result = run(pytester, *OPTIONS, "--attn-skips", "skips.txt")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "skips.txt:1" in said(result)
    assert "no_such_test" in said(result)
    assert "INTERNALERROR" not in said(result)


def test_accuracies_add_up() -> None:
    accuracy = Accuracy(2, {"element": 0.5, "row": 0.1}, 0.5, "here")
    accuracy.add(Accuracy(3, {"element": 0.2, "row": 0.7}, 0.7, "there"))
    accuracy.add(Accuracy(1, {"element": 0.6, "row": 0.0}, 0.6, "nowhere"))
    assert accuracy == Accuracy(6, {"element": 0.6, "row": 0.7}, 0.7, "there")
