"""The exact metrics: what does not depend on the machine's mood, so that any change of it is a change of the code.

They are compared by range: a metric grew when the head's least is beyond the base's most. Over one process a side
that is the plain comparison of two numbers; over several it leaves alone what differs between runs of the same code
(an autotuner that picks another kernel, an atomic addition that moves an error).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from pytest_attn.gate.evidence import finite, kernels_built
from pytest_attn.gate.thresholds import Limit, Thresholds
from pytest_attn.gate.verdict import Key, Outcome, Verdict
from pytest_attn.perf.record import Record, Run


def judge_exact(key: Key, base: Sequence[Record], head: Sequence[Record], thresholds: Thresholds) -> list[Verdict]:
    """Return a verdict for every metric of :data:`METRICS` that is not off and that the base has.

    Args:
        key: the cell.
        base: its records in the base, one a process; those that are not ok are left out.
        head: likewise.
        thresholds: of any cell.
    """
    limits = thresholds.for_cell(key).metrics
    verdicts = []
    for metric, read in METRICS.items():
        limit = limits[metric]
        before, after = ([read(record) for record in side if record.status == "ok"] for side in (base, head))
        numbers = [value for value in before if value is not None], [value for value in after if value is not None]
        if limit.action != "off" and numbers[0] and after:
            verdicts.append(_number(key, metric, *numbers, limit))
    limit = limits[NAMES]
    names = [{_names(record) for record in side if record.status == "ok"} - {None} for side in (base, head)]
    if limit.action != "off" and all(names):
        verdicts.append(_kernels(key, names[0], names[1], limit))
    return verdicts


def judge_resources(base: Sequence[Run], head: Sequence[Run], thresholds: Thresholds) -> list[Verdict]:
    """Return a verdict on each of :data:`RESOURCES` that is not off, for every compiled kernel that both sides have.

    The cell of such a verdict is (implementation, kernel, :data:`BUILD`): a build is one for all problems. A kernel of
    one side only is a note (:func:`pytest_attn.gate.terminal.notes`).

    Args:
        base: its runs, one a process.
        head: likewise.
        thresholds: of any cell.
    """
    before, after = _built(base), _built(head)
    verdicts = []
    for key in before:
        limits = thresholds.for_cell(key).metrics
        for metric in RESOURCES:
            old, new = ([v for one in side.get(key, ()) if (v := one[metric]) is not None] for side in (before, after))
            if limits[metric].action != "off" and old and new:
                verdicts.append(_number(key, metric, old, new, limits[metric]))
    return verdicts


def _built(runs: Sequence[Run]) -> dict[Key, list[dict[str, float | None]]]:
    """Return what each kernel takes in every run that says so."""
    found: dict[Key, list[dict[str, float | None]]] = {}
    for run in runs:
        for impl, kernels in kernels_built(run).items():
            for name, one in kernels.items():
                found.setdefault((impl, name, BUILD), []).append({each: finite(one.get(each)) for each in RESOURCES})
    return found


def _number(key: Key, metric: str, base: Sequence[float], head: Sequence[float], limit: Limit) -> Verdict:
    if not head:
        said = f"the base has {metric}, the head measured the cell without it"
        return Verdict(*key, Outcome.NO_DATA, "head-none", said, statistics.median(base), metric=metric)
    old, new = statistics.median(base), statistics.median(head)
    if _beyond(max(base), min(head), limit):
        outcome, code = (Outcome.SLOWER if limit.action == "fail" else Outcome.UNSURE), "grew"
    elif _beyond(max(head), min(base), limit):
        outcome, code = Outcome.FASTER, "shrank"
    elif _beyond(old, new, limit) or _beyond(new, old, limit):
        outcome, code = Outcome.UNSURE, "varies"
    else:
        outcome, code = Outcome.SAME, "within"
    ranges = f"{_range(base)} -> {_range(head)}"
    words = {
        "grew": f"{metric} grew, {ranges}",
        "shrank": f"{metric} shrank, {ranges}",
        "varies": f"{metric} differs between runs of the same code, {ranges}",
        "within": f"{metric} is the same within {100 * limit.relative:g} % or {limit.floor:g}",
    }
    return Verdict(*key, outcome, code, words[code], old, new, metric=metric)


def _kernels(key: Key, base: set[frozenset[str] | None], head: set[frozenset[str] | None], limit: Limit) -> Verdict:
    if head <= base:
        return Verdict(*key, Outcome.SAME, "within", "the kernels are the same", metric=NAMES)
    old, new = (set[str]().union(*(names or () for names in side)) for side in (base, head))
    parts = [
        f"{word} {', '.join(_short(name) for name in sorted(names))}"
        for word, names in (("without", old - new), ("with", new - old))
        if names
    ]
    what = "; ".join(parts) or "the same names in another combination"
    if base & head:
        said = f"the kernels differ between runs of the same code: {what}"
        return Verdict(*key, Outcome.UNSURE, "varies", said, metric=NAMES)
    outcome = Outcome.SLOWER if limit.action == "fail" else Outcome.UNSURE
    return Verdict(*key, outcome, "changed", f"the kernels changed: {what}", metric=NAMES)


def _beyond(low: float, high: float, limit: Limit) -> bool:
    return high > low * (1 + limit.relative) and high - low > limit.floor


def _names(record: Record) -> frozenset[str] | None:
    return None if record.kernels is None else frozenset(str(kernel.get("name")) for kernel in record.kernels)


def _launches(record: Record) -> float | None:
    counts = [] if record.kernels is None else [finite(kernel.get("count")) for kernel in record.kernels]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _bytes(name: str) -> Callable[[Record], float | None]:
    return lambda record: None if record.memory is None else getattr(record.memory, name)


def _error_ratio(record: Record) -> float | None:
    return None if record.accuracy is None else finite(record.accuracy.get("error_ratio"))


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.9g}" if low == high else f"{low:.9g} to {high:.9g}"


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:59]}…"


NAMES = "kernel_names"
BUILD = "build"
RESOURCES = ("registers", "local_bytes")
"""The metrics of a compiled kernel: registers of a thread, and its bytes of local memory, which spills go to."""
METRICS: Mapping[str, Callable[[Record], float | None]] = {
    "peak_bytes": _bytes("peak_bytes"),
    "workspace_bytes": _bytes("workspace_bytes"),
    "saved_bytes": _bytes("saved_bytes"),
    "kernel_count": _launches,
    "error_ratio": _error_ratio,
}
"""How each metric that is a number is read from a record; ``kernel_names`` is compared as a set."""
