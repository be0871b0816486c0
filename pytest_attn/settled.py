"""How much time one test may spend on finding a crash, a hang or a lack of memory again while its case is shrunk."""

from __future__ import annotations

import time

from pytest_attn.isolation.worker import Died, TimedOut
from pytest_attn.out_of_memory import NoRoom

SHRINK_S = 15.0
"""Seconds after a test's first crash in which smaller cases still run; each crash costs the start of a process."""


class Settled:
    """The failure that a running test keeps, because another like it costs too much or may not come.

    A hang costs the whole timeout, so the first one is kept; of crashes, the first that is ``SHRINK_S`` seconds after
    the first of all. A lack of memory comes and goes with what else the device does: the first one is kept, or, where
    the implementation was found wrong before, what was found last. Whatever case hypothesis tries from then on, the
    test fails at once with the kept report. Hypothesis is then done in no time, and what is shown is a case that did
    so, though a smaller one may.
    """

    def __init__(self) -> None:
        self.report: str | None = None
        self._wrong: str | None = None
        self._first_crash: float | None = None

    def reset(self) -> None:
        """Begin a test, with nothing kept."""
        self.report = self._wrong = self._first_crash = None

    def failed(self, report: str, raised: BaseException | None) -> None:
        """Note a failed case: what will be shown, and what was raised, in a verdict or without one."""
        if isinstance(raised, NoRoom):
            self.report = self._wrong or report
            return
        self._wrong = report
        if isinstance(raised, TimedOut):
            self.report = report
        elif isinstance(raised, Died):
            now = time.monotonic()
            self._first_crash = now if self._first_crash is None else self._first_crash
            if now - self._first_crash >= SHRINK_S:
                self.report = report
