"""What a profile is: calls, their kernels, the rows of each, and the JSON that keeps them. ``docs/profile.md``."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attn_impls.problem import DTYPE_BYTES, Direction, Problem
from pytest_attn.counters.rows import BY_NAME, REGISTERS, ROWS, SPILLS, Row

SCHEMA = 1
KIND = "attn-profile"

_LOAD_ROWS = ("gld_throughput", "gld_bytes", "gld_transactions_per_request")
# Nsight Compute drops the namespaces before a name, and with them the bracket of an inner "<unnamed>".
_ANONYMOUS = re.compile(r"\(anonymous namespace\)|<?\bunnamed>")


class BadProfile(ValueError):
    """A file that is no profile; the message is one sentence."""


@dataclass(slots=True)
class Kernel:
    """One kernel of a call, with a value (or ``None``) for each row, and notes on some of them."""

    name: str
    grid: str = ""
    block: str = ""
    values: dict[str, float | None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def short(self) -> str:
        """Its name without return type, namespaces, template arguments and parameters."""
        return short_name(self.name)

    def weight(self) -> float:
        """Return what it counts for in a mean over time."""
        return self.values.get("duration") or 0.0


@dataclass(slots=True)
class Call:
    """One call of an implementation: ``status`` is ``ok``, ``oom``, ``unsupported`` or ``error``, with its reason."""

    impl: str
    problem: Problem
    direction: Direction
    status: str
    reason: str | None = None
    kernels: list[Kernel] = field(default_factory=list)
    values: dict[str, float | None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "impl": self.impl,
            "problem_id": self.problem.id,
            "problem": self.problem.to_dict(),
            "direction": self.direction.value,
            "status": self.status,
            "reason": self.reason,
            "flops": self.problem.flops(self.direction),
            "values": self.values,
            "notes": self.notes,
            "kernels": [dataclasses.asdict(kernel) for kernel in self.kernels],
        }


@dataclass(slots=True)
class Profile:
    """The calls of one ``attn profile``; ``failures`` are sentences on what could not be profiled."""

    grid: str
    direction: Direction
    ncu: str
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "kind": KIND,
            "schema": SCHEMA,
            "grid": self.grid,
            "direction": self.direction.value,
            "ncu": self.ncu,
            "machine": self.machine,
            "versions": self.versions,
            "rows": [
                {"name": row.name, "unit": row.unit, "formula": row.formula, "over": row.over, "meaning": row.meaning}
                for row in BY_NAME.values()
            ],
            "failures": self.failures,
            "calls": [call.to_dict() for call in self.calls],
        }


def is_profile(data: Any) -> bool:
    """Tell whether a JSON document says that it is a profile."""
    return isinstance(data, dict) and data.get("kind") == KIND


def load_profile(path: Path | str) -> Profile:
    """Return the profile that the file holds; raises :class:`BadProfile` where it holds none."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadProfile(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise BadProfile(f"{path} is not JSON") from None
    if not is_profile(data):
        raise BadProfile(f"{path} is not what attn profile writes")
    if data.get("schema") != SCHEMA:
        raise BadProfile(f"{path} has schema {data.get('schema')!r}; this version reads {SCHEMA}")
    try:
        calls = [
            Call(
                call["impl"],
                Problem.from_dict(call["problem"]),
                Direction(call["direction"]),
                call["status"],
                call["reason"],
                [Kernel(**kernel) for kernel in call["kernels"]],
                call["values"],
                call["notes"],
            )
            for call in data["calls"]
        ]
        return Profile(
            data["grid"],
            Direction(data["direction"]),
            data["ncu"],
            data["machine"],
            data["versions"],
            calls,
            data["failures"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadProfile(f"{path} is a damaged profile: {error!r}") from None


def short_name(name: str) -> str:
    """Return the name of a kernel's function alone.

    >>> short_name("void attn::(anonymous namespace)::smem_forward_kernel<float, (int)64>(attn::Params<float>)")
    'smem_forward_kernel'
    >>> short_name("_flash_forward"), short_name("void at::native::fill<at::Functor<int>>(int, at::Functor<int>)")
    ('_flash_forward', 'fill')
    >>> short_name("void unnamed>::hopper_forward_kernel<__nv_bfloat16, PersistentTiles<64, 3>>(PersistentParams<T1>)")
    'hopper_forward_kernel'
    """
    plain = _ANONYMOUS.sub("anonymous", name)
    flat, depth = [], 0
    for character in plain:
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            break
        if depth == 0 and character != ">":
            flat.append(character)
    words = "".join(flat).split()
    return words[-1].rpartition("::")[2] or name if words else name


def make_kernel(name: str, grid: str, block: str, metrics: Mapping[str, float], resources: Mapping[str, Any]) -> Kernel:
    """Return a kernel with its rows; ``resources`` is what :func:`~pytest_attn.perf.resources.resources_of` gave."""
    kernel = Kernel(name, grid, block)
    for row in ROWS:
        _put(kernel, row, *row.value(metrics))
    _put(kernel, SPILLS, *_local_memory(kernel.short, metrics.get(REGISTERS), resources))
    return kernel


def make_call(impl: str, problem: Problem, direction: Direction, kernels: Sequence[Kernel]) -> Call:
    """Return a call of ``kernels`` in the order they ran, with the rows of all of them together."""
    call = Call(impl, problem, direction, "ok", kernels=list(kernels))
    _mark_bypassed(call)
    for row in BY_NAME.values():
        _put(call, row, *_together(row, kernels))
    return call


def _put(to: Kernel | Call, row: Row, value: float | None, note: str | None) -> None:
    to.values[row.name] = value
    if note is not None:
        to.notes[row.name] = note


def _together(row: Row, kernels: Sequence[Kernel]) -> tuple[float | None, str | None]:
    """Return the row of several kernels; those without a value are left out, which the note then says."""
    known = [(kernel.values[row.name], kernel.weight()) for kernel in kernels]
    there = [(value, weight) for value, weight in known if value is not None]
    notes = "; ".join(dict.fromkeys(kernel.notes[row.name] for kernel in kernels if row.name in kernel.notes)) or None
    if not there:
        return None, notes
    if len(there) < len(kernels):
        notes = f"of {len(there)} of {len(kernels)} kernels; the others: {notes}"
    values = [value for value, _ in there]
    if row.over == "sum":
        return sum(values), notes
    if row.over == "max":
        return max(values), notes
    total = sum(weight for _, weight in there)
    if total == 0:
        return sum(values) / len(values), notes
    return sum(value * weight for value, weight in there) / total, notes


def _mark_bypassed(call: Call) -> None:
    """Take the load rows from the main kernel where threads cannot have loaded what it must read.

    Attention reads what the mask leaves of q, k and v at least once. Where the threads of the kernel that has most of
    the time loaded less than half of that, TMA brought the rest, and the counter's small number is of
    something else.
    """
    main = max(call.kernels, key=Kernel.weight, default=None)
    loaded = None if main is None else main.values.get("gld_bytes")
    if main is None or loaded is None or main.weight() < 0.5 * sum(map(Kernel.weight, call.kernels)):
        return
    least = _least_read(call.problem)
    if loaded < 0.5 * least:
        note = (
            f"threads load {loaded / 1e6:.3g} MB, while the call reads {least / 1e6:.3g} MB of q, k and v: "
            "the rest comes by TMA, past this counter"
        )
        for name in _LOAD_ROWS:
            _put(main, BY_NAME[name], None, note)


def _least_read(problem: Problem) -> int:
    """Return the bytes of the queries that see a key and of the keys and values that a query sees.

    One query of a decoding model with a window reads the window, not all that the cache holds.
    """
    low, high = problem.mask.diagonals(problem.q_len, problem.kv_len)
    queries, keys = problem.q_len, problem.kv_len
    if high is not None:  # key j is visible to query i where low <= j - i <= high
        queries, keys = queries - max(0, -high), min(keys, problem.q_len + high)
    if low is not None:
        queries, keys = queries - max(0, problem.q_len + low - problem.kv_len), keys - max(0, low)
    rows = problem.heads * max(0, queries) + 2 * problem.kv_heads * max(0, keys)
    return DTYPE_BYTES[problem.dtype] * problem.batch * problem.head_dim * rows


def _local_memory(short: str, registers: float | None, resources: Mapping[str, Any]) -> tuple[float | None, str | None]:
    """Return the local memory of the compiled kernel of that name and number of registers.

    The profiler and the toolkit write template arguments in different ways, so instances of one template are told apart
    by their registers; the most counts where that leaves several.
    """
    compiled = resources.get("kernels")
    if compiled is None:
        return None, str(resources.get("missing") or "the compiler's report is known of our own kernels only")
    same = [one for name, one in compiled.items() if short_name(name) == short]
    if not same:
        return None, "the compiler's report has no such kernel"
    alike = [one for one in same if one["registers"] == registers]
    note = None if alike else "the most of any instance of this kernel: none has its number of registers"
    return float(max(one["local_bytes"] for one in alike or same)), note
