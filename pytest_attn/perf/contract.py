"""The terms under which a time is taken. Times under different contracts are never compared."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

TIMERS = ("auto", "events", "kineto", "wall")


@dataclass(frozen=True, slots=True)
class Contract:
    """A named, versioned way of measuring.

    Every contract has: inputs drawn from N(0, 1) by the case's own generator, anew for each problem and direction;
    forward timed without autograd's graph, backward timed alone through ``torch.autograd.grad`` with a fixed upstream
    gradient and a fresh graph each round; warm-up until the rolling median is flat; rounds in short batches, the
    implementations of one problem taking turns in shuffled order; as many rounds as it takes for the median's 95 %
    confidence interval to be narrow, within a budget; median, p10 and p90 over the rounds; memory and the names of
    kernels taken apart from the timing.

    ``events/4`` (CUDA): device seconds between two CUDA events, less the fixed cost of such a pair around one kernel;
    L2 flushed before each round and outside of it; a batch counts only if the device never waited for the host.
    ``kineto/3`` (CUDA): summed durations of the kernels, copies and fills of one call, as CUPTI reports them through
    torch.profiler; the same flush; gaps between kernels are left out. ``wall/4`` (CPU): host seconds by
    ``time.perf_counter``, at torch's number of threads, after the threads of whatever ran before have gone to sleep.

    Whoever changes a term or what is done between the rounds raises the version: times across it are not compared.

    Attributes:
        timer: ``"events"``, ``"kineto"`` or ``"wall"``.
        version: raised when the meaning of the numbers changes.
        warmup_s: fewest seconds of untimed rounds; the medians of its halves are what is compared.
        warmup_cap_s: seconds after which the warm-up ends though the median still moves.
        flat: the change of the rolling median, relative, below which it counts as flat.
        batch_s: seconds that a batch of rounds should take.
        min_rounds: fewest rounds, however slow the call.
        max_rounds: most rounds, however quick the call and however uncertain its median.
        least_s: fewest seconds of timed batches, unless ``max_rounds`` come first: a power limiter moves the clock for
            hundreds of milliseconds, and what is shorter sees one of its steps.
        budget_s: seconds of timed batches, what is flushed and prepared between the rounds included, after which no
            further batch starts.
        precision: half-width of the median's confidence interval, relative, that ends the rounds.
        noisy_above: half-width above which the record is ``noisy`` instead of a number.
        energy_s: seconds of a loop of its own in which the energy of a call is taken, which heats the device for the
            cells behind it; 0 leaves that out.
        isolated: the implementation had a process of its own, so its rounds took no turns with the others'.
        brief: warm-up and rounds were cut short, see :meth:`shortened`.
    """

    timer: str
    version: int
    warmup_s: float
    warmup_cap_s: float
    flat: float
    batch_s: float
    min_rounds: int
    max_rounds: int
    least_s: float
    budget_s: float
    precision: float
    noisy_above: float
    energy_s: float = 0.0
    isolated: bool = False
    brief: bool = False

    @property
    def id(self) -> str:
        """``timer/version``, with ``-energy``, ``-isolated`` and ``-brief`` as they hold; stored in each record."""
        marks = {"energy": self.energy_s > 0, "isolated": self.isolated, "brief": self.brief}
        return f"{self.timer}/{self.version}" + "".join(f"-{mark}" for mark, holds in marks.items() if holds)

    def shortened(self) -> Contract:
        """Return these terms with at most a tenth of a second for the warm-up and for the rounds of a cell.

        For a gate: its replicate is the process, and how far two processes of one tree are apart is mostly not the
        uncertainty of their medians.
        """
        return dataclasses.replace(
            self,
            warmup_cap_s=min(self.warmup_cap_s, 0.1),
            least_s=min(self.least_s, 0.05),
            budget_s=min(self.budget_s, 0.1),
            brief=True,
        )


def _device(timer: str, version: int) -> Contract:
    return Contract(
        timer,
        version,
        warmup_s=0.02,
        warmup_cap_s=0.3,
        flat=0.01,
        batch_s=0.02,
        min_rounds=10,
        max_rounds=500,
        least_s=0.4,
        budget_s=0.5,
        precision=0.005,
        noisy_above=0.1,
    )


_CONTRACTS = {
    "events": _device("events", version=4),
    "kineto": _device("kineto", version=3),
    # A CPU's clocks and neighbours seldom allow half a percent, so that most records would spend the whole budget:
    # it is smaller, for the default grid to stay under two minutes.
    "wall": Contract(
        "wall",
        version=4,
        warmup_s=0.03,
        warmup_cap_s=0.05,
        flat=0.05,
        batch_s=0.02,
        min_rounds=10,
        max_rounds=500,
        least_s=0.0,
        budget_s=0.15,
        precision=0.005,
        noisy_above=0.25,
    ),
}


def contract_for(timer: str, device_type: str) -> Contract:
    """Return the contract of ``timer`` on ``device_type``; ``"auto"`` is events on CUDA and wall clock on a CPU.

    Raises ``ValueError`` for a timer that does not exist or does not fit the device.
    """
    if timer not in TIMERS:
        raise ValueError(f"timer {timer!r} is not one of {', '.join(TIMERS)}")
    if timer == "auto":
        timer = "events" if device_type == "cuda" else "wall"
    if timer != "wall" and device_type != "cuda":
        raise ValueError(f"timer {timer!r} needs a CUDA device, not {device_type}")
    if timer == "wall" and device_type == "cuda":
        raise ValueError("timer 'wall' would time the launches of a CUDA device, not its work; use 'events'")
    return _CONTRACTS[timer]
