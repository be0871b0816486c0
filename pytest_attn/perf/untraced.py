"""What a process can take from an earlier run of the same machine, so that it need not start a profiler.

The first profiler session of a process costs seconds (CUPTI), the later ones milliseconds. It gives two things: the
fixed cost of a pair of CUDA events, which is the device's and not the process's, and the names of the kernels. A gate
starts dozens of processes of the same two trees, and may leave both to its first pair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_attn.perf.record import BadRun, Record, load_run


@dataclass(frozen=True, slots=True)
class TracedRun:
    """A run that had a profiler.

    Attributes:
        source: its file.
        overhead_s: seconds that its timer took off each round, where it did.
        overhead_from: what those were calibrated against, see :class:`~pytest_attn.perf.events.EventTimer`.
        proved: the cells whose kernels it has, each with the version of the implementation that ran them.
    """

    source: str
    overhead_s: float | None
    overhead_from: str | None = None
    proved: frozenset[tuple[tuple[str, str, str], str | None]] = frozenset()

    def note(self, record: Record) -> str:
        """Return what a record that was not traced has to say about that: where its kernels are, if anywhere."""
        if (record.key, record.impl_version) in self.proved:
            return f"what ran was not traced here, but in {self.source}"
        return f"what ran is not proved: neither this run nor {self.source} has the kernels of this cell and version"


def traced_run(path: str | Path, machine: Mapping[str, Any], contract: str) -> TracedRun:
    """Read a run of ``machine`` under ``contract`` (its id) that was traced itself.

    Raises ``ValueError`` with one sentence for a file that is no run, and for a run of something else.
    """
    try:
        run = load_run(path)
    except BadRun as error:
        raise ValueError(str(error)) from None
    if run.machine != json.loads(json.dumps(dict(machine))):
        raise ValueError(f"{path} was taken on another machine")
    if contract not in {record.contract for record in run.records}:
        raise ValueError(f"{path} holds no record under the contract {contract}")
    if run.instruments.get("traced_by") is not None:
        raise ValueError(f"{path} was not traced itself")
    overhead_us = run.instruments.get("overhead_us")
    return TracedRun(
        str(path),
        None if overhead_us is None else float(overhead_us) * 1e-6,
        run.instruments.get("overhead_from"),
        frozenset((each.key, each.impl_version) for each in run.records if each.status == "ok" and each.kernels),
    )
