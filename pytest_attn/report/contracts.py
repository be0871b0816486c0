"""Only records of one contract are compared: those of the one that most were taken under stay."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from pytest_attn.perf.record import BadRun, Run
from pytest_attn.report.words import clean, count, listed, short


def one_contract(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Return ``runs`` with the records of the contract that most have, and sentences on what was left out.

    Raises :class:`~pytest_attn.perf.record.BadRun` when a run would keep no record: then the runs do not belong
    together, and each can have a report of its own.
    """
    found = Counter(record.contract for run in runs for record in run.records)
    if len(found) < 2:
        return list(runs), []
    chosen = min(found, key=lambda contract: (-found[contract], contract))
    kept, said = [], []
    for run in runs:
        records = tuple(record for record in run.records if record.contract == chosen)
        if run.records and not records:
            source = ", ".join(clean(each.source) for each in runs if each.source) or "the runs"
            shown = ", ".join(repr(short(contract, 60)) for contract in sorted(found)[:4])
            raise BadRun(f"{source}: runs of different contracts ({shown}) cannot be compared; make a report of each")
        if len(records) < len(run.records):
            others = sorted({repr(short(record.contract, 60)) for record in run.records if record.contract != chosen})
            left = f"{len(run.records) - len(records)} of {count(len(run.records), 'record')} left out"
            under = f"taken under {listed(others)}, which cannot be compared with {short(chosen, 60)!r}"
            said.append(f"{clean(run.source) or 'the run'}: {left}: {under}")
        kept.append(dataclasses.replace(run, records=records))
    return kept, said
