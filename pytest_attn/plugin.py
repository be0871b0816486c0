"""The pytest plugin: hooks, and nothing else.

It loads in every pytest run of an environment, so importing it imports no torch; what a hook does is in the modules
that it calls, imported when something of this run is ours.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_attn import distributed, known, options
from pytest_attn.fixtures import Mismatch
from pytest_attn.fixtures import attn_bench as attn_bench
from pytest_attn.fixtures import attn_cases as attn_cases
from pytest_attn.fixtures import attn_check as attn_check
from pytest_attn.fixtures import attn_claim_check as attn_claim_check
from pytest_attn.fixtures import attn_direction as attn_direction
from pytest_attn.fixtures import attn_end_to_end as attn_end_to_end
from pytest_attn.fixtures import attn_impl as attn_impl
from pytest_attn.fixtures import attn_last_check as attn_last_check
from pytest_attn.fixtures import attn_problem as attn_problem
from pytest_attn.fixtures import attn_property_check as attn_property_check


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare ``--attn-*``."""
    options.add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Declare markers, refuse wrong option values, and register profiles before hypothesis looks one up."""
    config.addinivalue_line("markers", "correctness: compares attention implementations with a float64 oracle")
    config.addinivalue_line("markers", "perf: times attention implementations and takes their memory")
    config.addinivalue_line("markers", "copies: times attention from host memory and back; runs with -m copies only")
    config.addinivalue_line("markers", "gpu: of tests with a fixture attn_*: needs a CUDA device")
    config.addinivalue_line("markers", "large: takes tens of GiB of device memory; runs with -m large only")
    options.check(config)
    known.check(config)
    if config.getoption("hypothesis_profile", None):
        from pytest_attn.correctness.profiles import register

        register()
    if options.names_something(config):
        from pytest_attn.session import attn_session

        attn_session(config)
    if config.getoption("attn_gate"):
        from pytest_attn.gating import GateHooks

        config.pluginmanager.register(GateHooks(config), "attn-gate")
    distributed.register(config)
    if config.pluginmanager.has_plugin("benchmark"):
        from pytest_attn.results import BenchmarkHooks

        config.pluginmanager.register(BenchmarkHooks(), "attn-benchmark-hooks")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize ``attn_impl``, with ``attn_problem`` and ``attn_direction`` the cells of the grid, and the copies."""
    if {"attn_impl", "attn_end_to_end"} & set(metafunc.fixturenames):
        from pytest_attn.parametrize import parametrize

        parametrize(metafunc)


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None, None, None]:
    """Mark what is listed as known, before ``-m`` and ``-k`` deselect, and arrange what they leave.

    That is to order timed cells by problem, to keep only the repeated case's test, and to skip our ``gpu`` tests
    without a device. With the tests known, open the journal of a timed run.
    """
    from pytest_attn.parametrize import arrange, declare_benchmarks
    from pytest_attn.resume import keep_journal
    from pytest_attn.selection import select

    known.mark(config, items)
    declare_benchmarks(config, items)
    yield
    arrange(config, items)
    select(config, items)
    keep_journal(config, items)


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    """Say which device, versions and implementations this run has, and why others are missing."""
    from pytest_attn.terminal import header

    return header(config, items)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Register the progress line of timed runs."""
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        from pytest_attn.terminal import Progress

        session.config.pluginmanager.register(Progress(session.config, reporter), "attn-progress")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Forget what the test before kept."""
    from pytest_attn.session import existing_session

    session = existing_session(item.config)
    if session is not None:
        session.settled.reset()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a wrong result by what is wrong and how to repeat it, not by our frames and hypothesis's."""
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, Mismatch):
        from pytest_attn.terminal import Explanation

        report.longrepr = Explanation(call.excinfo.value)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the JSON even where no cell was timed, which pytest-benchmark would not, and leave out its wide tables."""
    from pytest_attn.results import quieten, write_without_times

    write_without_times(session.config, session.exitstatus)
    quieten(session.config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the accuracy of each implementation, and the count of timed cells by status."""
    from pytest_attn.terminal import summarize

    summarize(terminalreporter, config)
