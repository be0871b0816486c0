"""What a timer is: it gives seconds of one call, a batch of rounds at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Call = Callable[[], object]
# What comes before a timed call and outside of it: it returns the call to time.
Prepare = Callable[[], Call]


class HostBound(RuntimeError):
    """The device waited for the host in every attempt, so that the times would include launches."""


def of_the_call(error: BaseException) -> bool:
    """Tell whether ``error`` belongs to the call that raised it, and does not ask for the end of the whole run.

    ``SystemExit`` and pytest's ``skip`` and ``fail`` raised inside an implementation are its own; Ctrl-C and pytest's
    ``exit``, known by name since nothing here imports pytest, are not.
    """
    return not isinstance(error, KeyboardInterrupt | GeneratorExit) and type(error).__qualname__ != "Exit"


class Source(Protocol):
    """Rounds of one implementation, so that several can take turns."""

    def batch(self, size: int) -> list[float]:
        """Return seconds for each of at most ``size`` rounds, and at least one.

        Raises :class:`HostBound` where the timer cannot keep the launches out.
        """

    def host_seconds(self) -> float | None:
        """Return the host's seconds to launch one call, or ``None`` where launching is all that the timer sees."""


class Timer(Protocol):
    """Times ``prepare()()``, the preparation left out."""

    def source(self, prepare: Prepare) -> Source:
        """Return a source of rounds of ``prepare()()``."""
