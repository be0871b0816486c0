"""torch.profiler, told to be quiet."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch.profiler import profile


def profiling(activity: Literal["CPU", "CUDA"], *, profile_memory: bool = False, acc_events: bool = False) -> profile:
    """Return ``torch.profiler.profile`` for one kind of activity; the options are its own."""
    # Read when the profiler is first used: it announces each start and stop on stderr, in the middle of a progress
    # line.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    from torch.profiler import ProfilerActivity, profile

    activities = [getattr(ProfilerActivity, activity)]
    return profile(activities=activities, profile_memory=profile_memory, acc_events=acc_events)
