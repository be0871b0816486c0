"""Which tests there are: implementations, and for timed tests the cells of the grid. Parameters are strings."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from attn_impls.problem import Direction
from pytest_attn import options
from pytest_attn.perf.record import Record
from pytest_attn.session import AttnSession, attn_session, existing_session


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Parametrize a test that uses ``attn_impl``; with ``attn_problem`` and ``attn_direction``, over the grid."""
    session = attn_session(metafunc.config)
    if "attn_end_to_end" in metafunc.fixturenames:
        _parametrize_end_to_end(metafunc, session)
        return
    if {"attn_problem", "attn_direction"} <= set(metafunc.fixturenames):
        _parametrize_cells(metafunc, session)
        return
    implementations = [pytest.param(name, id=name, marks=_skip_missing(session, name)) for name in session.selected]
    metafunc.parametrize("attn_impl", implementations, indirect=True, scope="session")


def _skip_missing(session: AttnSession, name: str) -> list[pytest.MarkDecorator]:
    reason = session.missing.get(name)
    return [] if reason is None else [pytest.mark.skip(reason=f"{name}: {reason}")]


def _parametrize_cells(metafunc: pytest.Metafunc, session: AttnSession) -> None:
    """Make one test a cell; a cell outside an implementation's capabilities is a record, not a test."""
    cells = []
    unsupported: dict[tuple[str, str, str], Record] = {}
    directions = options.directions(metafunc.config)
    for problem_id, problem in session.problems.items():
        for direction in directions:
            for name, impl in session.selected.items():
                if name in session.missing:
                    continue
                reason = impl.capabilities.why_not(problem, direction, session.device.type)
                if reason is None:
                    cell = (name, problem_id, direction.value)
                    cells.append(pytest.param(*cell, id="-".join(cell)))
                else:
                    record = Record(name, problem, direction, "unsupported", session.contract.id, reason)
                    unsupported[record.key] = record
    session.unsupported.update(unsupported)
    names = ("attn_impl", "attn_problem", "attn_direction")
    metafunc.parametrize(names, cells, indirect=True)


def _parametrize_end_to_end(metafunc: pytest.Metafunc, session: AttnSession) -> None:
    """Make one test of each way of copying on each problem that an implementation takes, where that was asked for.

    Four more measurements a cell are too many for a run that does not want them.
    """
    if "copies" not in metafunc.config.getoption("markexpr"):
        skip = pytest.mark.skip(reason="times attention from host memory and back; run it with -m copies")
        metafunc.parametrize("attn_end_to_end", [pytest.param(None, id="not-asked-for", marks=skip)], indirect=True)
        return
    from pytest_attn.perf.copies import COPIES

    cells = [
        pytest.param((name, problem_id, copies), id=f"{name}-{problem_id}-{copies}", marks=_skip_missing(session, name))
        for problem_id, problem in session.problems.items()
        for name, impl in session.selected.items()
        if impl.capabilities.why_not(problem, Direction.FWD, session.device.type) is None
        for copies in COPIES
    ]
    metafunc.parametrize("attn_end_to_end", cells, indirect=True)


def arrange(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order, narrow and skip the collected tests."""
    session = existing_session(config)
    # Other people's tests have a marker of this name, too.
    gpu = [item for item in items if item.get_closest_marker("gpu") and _is_ours(item)]
    if gpu and (session or attn_session(config)).device.type != "cuda":
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if session is None:
        return
    if not any("attn_problem" in getattr(item, "fixturenames", ()) for item in items):
        session.unsupported.clear()  # nothing is timed: what could not have been is no result of this run
    if config.pluginmanager.has_plugin("benchmark") and any(map(cell, items)):
        from pytest_attn.bench import check_benchmark_plugin

        check_benchmark_plugin()
    if session.case is not None:
        _keep_only_repeated(config, items, session.case[1], session.property)
    # Implementations of one problem follow each other, so that slow drift of the machine hits them alike. pytest
    # itself groups by the session-scoped implementation.
    problems = {problem: index for index, problem in enumerate(session.problems)}
    directions = {direction.value: index for index, direction in enumerate(Direction)}
    order = [
        (problems[params["attn_problem"]], directions[params["attn_direction"]]) if (params := cell(item)) else (-1, -1)
        for item in items
    ]
    items[:] = [items[i] for i in sorted(range(len(items)), key=order.__getitem__)]
    session.cells = [
        (params["attn_impl"], params["attn_problem"], params["attn_direction"])
        for item in items
        if (params := cell(item)) is not None
    ]


def declare_benchmarks(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Name pytest-benchmark's fixture among those of timed tests, before its options choose by that.

    ``attn_bench`` does not ask for it by name, or a run without pytest-benchmark could not say what is missing.
    """
    if not config.pluginmanager.has_plugin("benchmark"):
        return
    for item in items:
        names: list[str] = getattr(item, "fixturenames", [])
        if "attn_bench" in names and "benchmark" not in names:
            names.append("benchmark")


def cell(item: pytest.Item) -> dict[str, str] | None:
    """Return a timed test's implementation, problem id and direction by parameter name; ``None`` for other tests."""
    params: dict[str, str] = getattr(getattr(item, "callspec", None), "params", {})
    return params if "attn_problem" in params else None


def _is_ours(item: pytest.Item) -> bool:
    return any(name.startswith("attn_") for name in getattr(item, "fixturenames", ()))


def _keep_only_repeated(
    config: pytest.Config, items: list[pytest.Item], direction: Direction, property_name: str | None
) -> None:
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        marker = item.get_closest_marker("correctness")
        asked = (direction.value, property_name)
        wanted = marker is not None and (marker.kwargs.get("direction"), marker.kwargs.get("property")) == asked
        (kept if wanted else dropped).append(item)
    items[:] = kept
    if dropped:
        config.hook.pytest_deselected(items=dropped)
