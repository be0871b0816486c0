"""Runs the suite itself on one implementation, until its first failure, and counts the examples.

What is run is the body of the tests that users run (``tests/correctness``) at the number of examples of the profile
``ci``, with a fixed seed in place of the derandomisation, whose draws depend on the test's id.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import Phase, assume, given, seed, settings
from hypothesis import strategies as st

from attn_impls import Direction, Implementation
from pytest_attn.correctness.case import Case
from pytest_attn.correctness.fixed import fixed_cases
from pytest_attn.correctness.judge import judge
from pytest_attn.correctness.profiles import PROFILES
from pytest_attn.correctness.properties import PROPERTIES, judge_property
from pytest_attn.correctness.strategies import cases
from tests.correctness import test_equivalence, test_properties

CPU = torch.device("cpu")
EXAMPLES = PROFILES["ci"].max_examples


@dataclass(frozen=True, slots=True)
class Caught:
    """Which check failed first, after how many examples of it, and what it said."""

    check: str
    examples: int
    report: str


class _Found(Exception):
    pass


def first_failure(impl: Implementation, *, start: int = 0, checks: tuple[str, ...] = ()) -> Caught | None:
    """Run ``test_forward``, ``test_gradients``, each property and then the fixed cases, until one fails.

    ``start`` seeds the draws; ``checks`` limits to some of ``forward``, ``gradients``, the properties' names and
    ``fixed``, whose count is the place of the case among the fixed ones.
    """
    for name, body, examples in _tests(impl):
        if not checks or name in checks:
            caught = _run(impl, name, body, examples, start)
            if caught is not None:
                return caught
    return _fixed(impl) if not checks or "fixed" in checks else None


def _fixed(impl: Implementation) -> Caught | None:
    count = 0
    for direction in (Direction.FWD, Direction.BWD):
        for case in fixed_cases(impl.capabilities, "cpu", direction).values():
            count += 1
            verdict = judge(impl, case, direction, CPU)
            if not verdict.ok:
                return Caught("fixed", count, verdict.explain())
    return None


def _tests(impl: Implementation) -> list[tuple[str, Callable[..., None], int]]:
    forward = test_equivalence.test_forward.hypothesis.inner_test  # type: ignore[attr-defined]
    gradients = test_equivalence.test_gradients.hypothesis.inner_test  # type: ignore[attr-defined]
    holds = test_properties.test_property.hypothesis.inner_test  # type: ignore[attr-defined]
    tests = [("forward", forward, EXAMPLES)]
    if impl.capabilities.backward:
        tests.append(("gradients", gradients, EXAMPLES))
    for name, rule in PROPERTIES.items():
        if rule.never(impl.capabilities) is None:

            def body(name: str = name, *, attn_check: Any, attn_property_check: Any, **fixtures: Any) -> None:
                holds(name=name, attn_property_check=attn_property_check, **fixtures)

            tests.append((name, body, EXAMPLES // 4))
    return tests


def _run(impl: Implementation, check: str, body: Callable[..., None], examples: int, start: int) -> Caught | None:
    count = 0
    found: list[Caught] = []

    def stop(report: str) -> None:
        if not found:
            found.append(Caught(check, count, report))
        raise _Found(report)

    def attn_check(case: Case, direction: Direction) -> None:
        nonlocal count
        count += 1
        verdict = judge(impl, case, direction, CPU)
        if not verdict.ok:
            stop(verdict.explain())

    def attn_property_check(name: str, case: Case) -> None:
        nonlocal count
        count += 1
        verdict = judge_property(impl, name, case, CPU)
        assume(verdict is not None)
        if verdict is not None and not verdict.ok:
            stop(verdict.explain())

    def attn_cases(direction: Direction) -> st.SearchStrategy[Case]:
        return cases(impl.capabilities, "cpu", direction)

    @seed(start)
    @settings(PROFILES["ci"], max_examples=examples, derandomize=False, phases=[Phase.generate])
    @given(data=st.data())
    def test(data: st.DataObject) -> None:
        fixtures: dict[str, Any] = {"attn_impl": impl, "attn_cases": attn_cases, "data": data}
        fixtures["attn_check"] = attn_check
        if check not in ("forward", "gradients"):
            fixtures["attn_property_check"] = attn_property_check
        body(**fixtures)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            test()
    # Hypothesis repeats what it found, and says so in another way where the repetition differs.
    except Exception:
        if not found:
            raise
    return found[0] if found else None
