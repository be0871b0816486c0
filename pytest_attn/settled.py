"""How much time one test may spend on finding a crash, a hang or a lack of memory again while its case is shrunk."""

from __future__ import annotations

import time

from pytest_attn.isolation.worker import Died, TimedOut
from pytest_attn.out_of_memory import NoRoom

SHRINK_S = 15.0
"""Seconds after a test's first crash in which smaller cases still run; each crash costs the start of a process."""


class Settled:
    """The failure that a running test keeps, because each further one like it costs too much.

    A hang costs the whole timeout, and a lack of memory comes and goes with what else the device does, so the first
    one is kept; of crashes, the first that is ``SHRINK_S`` seconds after the first of all. Whatever case hypothesis
    tries from then on, the test fails at once with the kept report. Hypothesis is then done in no time, and what is
    shown is a case that did so, though a smaller one may.
    """

    def __init__(self) -> None:
        self.report: str | None = None
        self._first_crash: float | None = None

    def reset(self) -> None:
        """Begin a test, with nothing kept."""
        self.report = self._first_crash = None

    def failed(self, report: str, raised: BaseException | None) -> None:
        """Note a failed case: what will be shown, and what was raised, in a verdict or without one."""
        if isinstance(raised, TimedOut | NoRoom):
            self.report = report
        elif isinstance(raised, Died):
            now = time.monotonic()
            self._first_crash = now if self._first_crash is None else self._first_crash
            if now - self._first_crash >= SHRINK_S:
                self.report = report
