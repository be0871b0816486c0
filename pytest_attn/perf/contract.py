"""The terms under which a time is taken. Times under different contracts are never compared."""

from __future__ import annotations

from dataclasses import dataclass

TIMERS = ("auto", "events", "wall")


@dataclass(frozen=True, slots=True)
class Contract:
    """A named, versioned way of measuring.

    Every contract has: inputs drawn from N(0, 1) by the case's own generator; forward timed without autograd's
    graph, backward timed alone through ``torch.autograd.grad`` with a fixed upstream gradient and a fresh graph each
    round; median, p10 and p90 over the rounds; memory measured apart.

    ``events/1`` (CUDA): device seconds between two CUDA events, L2 flushed before each round and outside of it, the
    whole batch of rounds queued before the first result is read. ``wall/1`` (CPU): host seconds by
    ``time.perf_counter``, at torch's number of threads.

    Attributes:
        timer: ``"events"`` or ``"wall"``.
        version: raised when the meaning of the numbers changes.
        warmup_s: seconds of untimed calls before the first round, at least two calls.
        min_rounds: fewest rounds, however slow the call.
        max_rounds: most rounds, however quick the call.
        budget_s: seconds of timed calls after which no further round starts.
    """

    timer: str
    version: int
    warmup_s: float
    min_rounds: int
    max_rounds: int
    budget_s: float

    @property
    def id(self) -> str:
        """``timer/version``, stored in every record."""
        return f"{self.timer}/{self.version}"


_CONTRACTS = {
    "events": Contract("events", version=1, warmup_s=0.1, min_rounds=10, max_rounds=200, budget_s=0.25),
    "wall": Contract("wall", version=1, warmup_s=0.02, min_rounds=5, max_rounds=200, budget_s=0.15),
}


def contract_for(timer: str, device_type: str) -> Contract:
    """Return the contract of ``timer`` on ``device_type``; ``"auto"`` is events on CUDA and wall clock on a CPU.

    Raises ``ValueError`` for a timer that does not exist or does not fit the device.
    """
    if timer not in TIMERS:
        raise ValueError(f"timer {timer!r} is not one of {', '.join(TIMERS)}")
    if timer == "auto":
        timer = "events" if device_type == "cuda" else "wall"
    if timer == "events" and device_type != "cuda":
        raise ValueError(f"timer 'events' needs a CUDA device, not {device_type}")
    if timer == "wall" and device_type == "cuda":
        raise ValueError("timer 'wall' would time the launches of a CUDA device, not its work; use 'events'")
    return _CONTRACTS[timer]
