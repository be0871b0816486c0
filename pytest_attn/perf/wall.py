"""The wall clock, for a CPU, where a call returns when it is done."""

from __future__ import annotations

import time

from pytest_attn.perf.timers import Call, Prepare


class WallTimer:
    """Host seconds by ``time.perf_counter``."""

    def source(self, prepare: Prepare) -> WallSource:
        """Return a source of rounds of ``prepare()()``."""
        return WallSource(prepare)


class WallSource:
    """Rounds of one implementation on a CPU.

    The worker threads of an OpenMP region go on spinning for milliseconds after it. Two libraries that bring a runtime
    each (torch's, an extension's) then take the cores from one another, so that a batch begins when the process has
    gone quiet, and with one call that does not count, which wakes the threads that this implementation uses.
    """

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare

    def batch(self, size: int) -> list[float]:
        """Return the seconds of ``size`` calls, one after the other."""
        _settle()
        self._prepare()()
        return [_seconds(self._prepare()) for _ in range(size)]

    def host_seconds(self) -> None:
        """Return ``None``: on a CPU the call is its own launch."""


_LOOK_S = 1e-3
_MOST_LOOKS = 50


def _settle() -> None:
    """Wait until this process burns no processor time while its main thread sleeps, at most some 50 ms."""
    for _ in range(_MOST_LOOKS):
        before = time.process_time()
        time.sleep(_LOOK_S)
        if time.process_time() - before < _LOOK_S / 4:
            return


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
