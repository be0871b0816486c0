"""What workers of pytest-xdist find reaches the process that reports: refusals, and the accuracy of implementations."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any

import pytest

_REFUSED, _ACCURACY = "attn_refused", "attn_accuracy"


class InWorker:
    """Hooks of a worker. What it prints nobody sees: its ``workeroutput`` is what goes to the other process."""

    def __init__(self, output: dict[str, Any]) -> None:
        self._output = output

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Generator[None, object, object]:
        """Keep what a user did wrong; xdist would say that an assertion of its own failed."""
        try:
            return (yield)
        except pytest.UsageError as error:
            self._output[_REFUSED] = str(error)
            raise

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Pass on how implementations did."""
        from pytest_attn.session import existing_session

        ours = existing_session(session.config)
        if ours is not None:
            self._output[_ACCURACY] = {name: dataclasses.asdict(found) for name, found in ours.accuracy.items()}


class InController:
    """Hooks of the process that starts workers."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what a worker passed on, and end the run with what it refused."""
        output = getattr(node, "workeroutput", {})  # a worker that crashed has none
        if _REFUSED in output:
            raise pytest.UsageError(output[_REFUSED])
        if found := output.get(_ACCURACY):
            from pytest_attn.session import Accuracy, attn_session

            accuracy = attn_session(self._config).accuracy
            for name, each in found.items():
                accuracy.setdefault(name, Accuracy()).add(Accuracy(**each))


def register(config: pytest.Config) -> None:
    """Register the hooks of this process, a worker or not."""
    output = getattr(config, "workeroutput", None)
    config.pluginmanager.register(InController(config) if output is None else InWorker(output), "attn-distributed")
