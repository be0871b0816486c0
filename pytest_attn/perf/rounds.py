"""Who is timed when, and for how long: warm-up, turns, and the end of it."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from statistics import median

from pytest_attn.frames import forget_frames
from pytest_attn.perf.contract import Contract
from pytest_attn.perf.spread import half_width
from pytest_attn.perf.timers import Source, of_the_call

_LARGEST_BATCH = 16
_WARM_UP_SHARE = 4
# The rounds of one batch follow each other closely and say little about the next one's: from six batches on the range
# of their medians covers the median of all in 97 cases of 100.
_FEWEST_BATCHES = 6

Around = Callable[[], AbstractContextManager[object]]


@dataclass
class Turns:
    """The rounds of one implementation: what was timed so far, and what ended it early.

    ``lost`` says that it left the device unusable.
    """

    source: Source
    durations: list[float] = field(default_factory=list)
    middles: list[float] = field(default_factory=list)  # the median of each batch
    size: int = 1
    spent_s: float = 0.0
    error: BaseException | None = None
    lost: bool = False

    def guarded(self, step: Callable[[Turns, Contract], None], contract: Contract, around: Around) -> None:
        """Take a step within ``around()``, and keep what either raises."""
        try:
            with around():
                step(self, contract)
        except BaseException as error:
            if not of_the_call(error):
                raise
            forget_frames(error)  # the others need the memory
            self.error = error

    @property
    def known_to(self) -> float:
        """Half the width of the median's interval, relative to the median.

        It comes from the rounds and from the medians of the batches, whichever is wider. A clock that steps while they
        are taken moves whole batches, so that rounds within one are not the independent samples that the interval
        asks for.
        """
        return max(half_width(self.durations), half_width(self.middles))

    def done(self, contract: Contract) -> bool:
        """Tell whether no further batch is needed or allowed."""
        count = len(self.durations)
        if self.error is not None or count >= contract.max_rounds:
            return True
        if count < contract.min_rounds or len(self.middles) < min(_FEWEST_BATCHES, contract.min_rounds):
            return False
        if self.spent_s < contract.least_s:
            return False
        return self.spent_s >= contract.budget_s or self.known_to <= contract.precision


def take_turns(
    sources: Sequence[Source],
    contract: Contract,
    shuffle: random.Random,
    watch: Callable[[int], None] = lambda index: None,
    lost: Callable[[], bool] = lambda: False,
    around: Around = nullcontext,
) -> list[Turns]:
    """Warm each source up, then time them in turns until each is known well enough or has spent its budget.

    Every turn is one batch of rounds; the order is shuffled anew each time around, so that a clock that drifts and a
    neighbour that wakes up hit all alike. ``watch`` is told whose turn it is. Each turn, and each warm-up, runs within
    ``around()``, whose seconds do not count. What one source, or what is around its turn, raises is kept with it and
    the others go on, unless ``lost`` then says that the device is gone for all of them.
    """
    turns = [Turns(source) for source in sources]
    for index, turn in enumerate(turns):
        watch(index)
        turn.guarded(_warm_up, contract, around)
        if turn.error is not None and lost():
            turn.lost = True
            return turns
    while waiting := [index for index, turn in enumerate(turns) if not turn.done(contract)]:
        shuffle.shuffle(waiting)
        for index in waiting:
            watch(index)
            turns[index].guarded(_timed_batch, contract, around)
            if turns[index].error is not None and lost():
                turns[index].lost = True
                return turns
    return turns


def _warm_up(turn: Turns, contract: Contract) -> None:
    turn.size = warm_up(turn.source, contract)


def _timed_batch(turn: Turns, contract: Contract) -> None:
    begin = time.perf_counter()
    durations = turn.source.batch(min(turn.size, contract.max_rounds - len(turn.durations)))
    turn.durations += durations
    turn.middles.append(median(durations))
    turn.spent_s += time.perf_counter() - begin


def warm_up(source: Source, contract: Contract) -> int:
    """Run batches that do not count until their rolling median is flat, and return how many rounds make a batch.

    At least two batches, at least ``warmup_s`` and at most ``warmup_cap_s`` seconds, except that a batch is not cut
    short. A batch that counts takes about ``batch_s``; here they are shorter, since it takes several to tell.
    """
    medians: list[float] = []
    lengths: list[float] = []
    size = 1
    while True:
        begin = time.perf_counter()
        durations = source.batch(size)
        lengths.append(time.perf_counter() - begin)
        medians.append(median(durations))
        fitting = contract.batch_s / max(lengths[-1] / len(durations), 1e-9)
        size = max(1, min(_LARGEST_BATCH, int(fitting / _WARM_UP_SHARE)))
        if len(medians) >= 2 and (sum(lengths) >= contract.warmup_cap_s or _flat(medians, lengths, contract)):
            return max(1, min(_LARGEST_BATCH, int(fitting)))


def _flat(medians: Sequence[float], lengths: Sequence[float], contract: Contract) -> bool:
    """Compare the last batches, as many as make half of ``warmup_s``, with as many before them."""
    if sum(lengths) < contract.warmup_s:
        return False
    spans = itertools.accumulate(reversed(lengths))  # one pass: a quick call makes hundreds of batches
    window = next(n for n, span in enumerate(spans, start=1) if span >= contract.warmup_s / 2)
    if 2 * window > len(lengths):
        return False
    before, after = median(medians[-2 * window : -window]), median(medians[-window:])
    return abs(after - before) <= contract.flat * before
