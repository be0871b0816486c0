"""A profile as a table in the terminal: a row for each counter, a column for each problem, and notes under it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attn_impls.problem import Problem
from pytest_attn.counters.document import Call, Kernel, Profile
from pytest_attn.counters.rows import BY_NAME
from pytest_attn.text import TIMES, scaled, table

_METRIC = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_UNITS = {
    "s": TIMES,
    "B": tuple((size, f"{prefix}B") for size, prefix in _METRIC),
    "B/s": tuple((size, f"{prefix}B/s") for size, prefix in _METRIC),
    "": _METRIC,
}
_MOST_COLUMNS = 6
_OF_A_KERNEL = {
    "duration": "time",
    "gld_throughput": "gld",
    "gst_throughput": "gst",
    "sm_efficiency": "sm",
    "achieved_occupancy": "occupancy",
    "tensor_pipe": "tensor",
    "registers": "registers",
    "shared_memory": "shared",
    "local_memory": "local",
}
_KV_LEN = 4  # its place in a problem's id


def quantity(value: float, unit: str) -> str:
    """Return a row's value to three digits with its unit.

    >>> quantity(2.5e12, "B/s"), quantity(0.0, "B"), quantity(97.53, "%"), quantity(4.0, "")
    ('2.5 TB/s', '0 B', '97.5 %', '4')
    """
    return f"{value:.3g} %" if unit == "%" else scaled(value, _UNITS[unit]).rstrip()


def labels(problems: Sequence[Problem]) -> list[str]:
    """Return a short name for each of several problems: what they do not have in common; ``q_len`` for both lengths."""
    parts = [problem.id.split("-") for problem in problems]
    if len(parts) < 2 or len({len(each) for each in parts}) > 1:
        return ["-".join(each) for each in parts]
    differ = [place for place in range(len(parts[0])) if len({each[place] for each in parts}) > 1]
    square = all(problem.q_len == problem.kv_len for problem in problems)
    kept = [place for place in differ if not (square and place == _KV_LEN)]
    return ["-".join(each[place] for place in kept) for each in parts]


def lines(profile: Profile) -> Iterator[str]:
    """Yield the lines of a profile: a table for each implementation, then what was not profiled."""
    for impl in dict.fromkeys(call.impl for call in profile.calls):
        calls = [call for call in profile.calls if call.impl == impl]
        good = [call for call in calls if call.status == "ok"]
        if good:
            common = f" on {good[0].problem.id}" if len(good) == 1 else ""
            yield f"{impl}, {profile.direction.value}{common}"
            yield from _table(good)
        for call in calls:
            if call.status != "ok":
                yield f"{impl}, {call.problem.id}: {call.status}, {call.reason}"
        yield ""


def _table(calls: Sequence[Call]) -> Iterator[str]:
    names = labels([call.problem for call in calls]) if len(calls) > 1 else ["call"]
    columns = list(zip(names, calls, strict=True))
    notes: dict[str, str] = {}
    for start in range(0, len(columns), _MOST_COLUMNS):
        part = columns[start : start + _MOST_COLUMNS]
        rows = [[row.name, *(_cell(call, row.name, notes) for _, call in part)] for row in BY_NAME.values()]
        yield from table(["", *(name for name, _ in part)], rows, right=range(1, len(part) + 1))
    for name, call in columns:
        if len(call.kernels) > 1:
            yield from _kernels(name, call, notes)
    yield from (f"  {mark} {note}" for note, mark in notes.items())


def _kernels(name: str, call: Call, notes: dict[str, str]) -> Iterator[str]:
    """Yield a line for each kernel of a call, with the rows that tell kernels apart."""
    total = sum(map(Kernel.weight, call.kernels)) or 1.0
    rows = [
        [
            kernel.short,
            f"{100 * kernel.weight() / total:.0f} %",
            *(_cell(kernel, row, notes) for row in _OF_A_KERNEL),
        ]
        for kernel in call.kernels
    ]
    head = (f"kernels of {name}", "of the time", *_OF_A_KERNEL.values())
    yield from table(head, rows, right=range(1, len(head)))


def _cell(shown: Call | Kernel, name: str, notes: dict[str, str]) -> str:
    value, note = shown.values.get(name), shown.notes.get(name)
    text = "n/a" if value is None else quantity(value, BY_NAME[name].unit)
    return text if note is None else f"{text} {notes.setdefault(note, f'[{len(notes) + 1}]')}"
