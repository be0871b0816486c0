"""The result of one measurement, :class:`Record`, and what a whole run says about itself, :class:`Run`.

Both are plain data with a JSON form (``record.schema.json`` beside this file). Reading them needs neither torch nor
pytest, so that the gate and the report work anywhere.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attn_impls.problem import Direction, Problem

SCHEMA = 1
STATUSES = ("ok", "oom", "unsupported", "error", "host_bound", "noisy")


class BadRun(ValueError):
    """A file that is not a run of this tool: missing, truncated, empty, or of another schema. One sentence."""


@dataclass(frozen=True, slots=True)
class Time:
    """Seconds of the contract's timer: median, 10th and 90th percentile over ``n`` rounds.

    ``ci`` is half the width of the median's 95 % confidence interval, relative to the median.
    """

    median: float
    p10: float
    p90: float
    n: int
    ci: float | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, measured in a pass of their own.

    ``peak_bytes`` is the peak over the inputs, ``workspace_bytes`` that peak less the outputs, ``saved_bytes`` what
    autograd keeps for the backward pass beyond the inputs (``None`` where no backward was prepared).
    """

    peak_bytes: int
    workspace_bytes: int
    saved_bytes: int | None = None


def cell_key(impl: str, problem: Problem, direction: Direction) -> tuple[str, str, str]:
    """Return (implementation, problem id, direction): what a cell is kept and compared by."""
    return impl, problem.id, direction.value


@dataclass(frozen=True, slots=True)
class Record:
    """What one (implementation, problem, direction) measured. Only status ``ok`` carries numbers to compare.

    Attributes not named by their own class: ``host_us``, the host's microseconds to launch one call; ``compile_s``,
    seconds of the first call less those of the second; ``kernel_s``, summed durations of the kernels of one call;
    ``kernels``, their names with shares of that sum and counts (on a CPU torch's operators); ``telemetry``, what NVML
    saw during the rounds; ``note``, a sentence on a number that needs one.
    """

    impl: str
    problem: Problem
    direction: Direction
    status: str
    contract: str
    reason: str | None = None
    impl_version: str | None = None
    time_s: Time | None = None
    memory: Memory | None = None
    host_us: float | None = None
    compile_s: float | None = None
    percent_of_peak: float | None = None
    percent_of_peak_at_clock: float | None = None
    kernel_s: float | None = None
    kernels: tuple[Mapping[str, Any], ...] | None = None
    note: str | None = None
    telemetry: Mapping[str, Any] | None = None
    accuracy: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is not one of {', '.join(STATUSES)}")
        if self.status == "ok" and self.time_s is None:
            raise ValueError("a record with status ok needs a time")

    @property
    def key(self) -> tuple[str, str, str]:
        """The :func:`cell_key` of what was measured."""
        return cell_key(self.impl, self.problem, self.direction)

    @property
    def tflops(self) -> float | None:
        """Useful TFLOP/s: the problem's formula over the median time."""
        if self.time_s is None or self.time_s.median <= 0:
            return None
        return self.problem.flops(self.direction) / self.time_s.median / 1e12

    @property
    def dense_tflops(self) -> float | None:
        """TFLOP/s as if nothing were masked: what a kernel that skips no block has to do."""
        if self.time_s is None or self.time_s.median <= 0:
            return None
        return self.problem.dense_flops(self.direction) / self.time_s.median / 1e12

    @property
    def gbps(self) -> float | None:
        """GB/s of the least traffic the problem needs, over the median time."""
        if self.time_s is None or self.time_s.median <= 0:
            return None
        return self.problem.min_bytes(self.direction) / self.time_s.median / 1e9

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of ``record.schema.json``, derived numbers included."""
        return {
            "schema": SCHEMA,
            "impl": self.impl,
            "impl_version": self.impl_version,
            "problem": self.problem.to_dict(),
            "problem_id": self.problem.id,
            "direction": self.direction.value,
            "status": self.status,
            "reason": self.reason,
            "contract": self.contract,
            "flops": self.problem.flops(self.direction),
            "tflops": self.tflops,
            "dense_tflops": self.dense_tflops,
            "gbps": self.gbps,
            "percent_of_peak": self.percent_of_peak,
            "percent_of_peak_at_clock": self.percent_of_peak_at_clock,
            "time_s": None if self.time_s is None else dataclasses.asdict(self.time_s),
            "host_us": self.host_us,
            "compile_s": self.compile_s,
            "memory": None if self.memory is None else dataclasses.asdict(self.memory),
            "kernel_s": self.kernel_s,
            "kernels": None if self.kernels is None else [dict(kernel) for kernel in self.kernels],
            "note": self.note,
            "telemetry": None if self.telemetry is None else dict(self.telemetry),
            "accuracy": None if self.accuracy is None else dict(self.accuracy),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """Read :meth:`to_dict`'s form; keys that are not ours are left alone.

        Raises :class:`BadRun` when the schema is another one or a field does not fit.
        """
        if data.get("schema") != SCHEMA:
            raise BadRun(f"a record has schema {data.get('schema')!r}; this version reads {SCHEMA}")
        try:
            time, memory, kernels = data.get("time_s"), data.get("memory"), data.get("kernels")
            return cls(
                impl=str(data["impl"]),
                problem=Problem.from_dict(data["problem"]),
                direction=Direction(data["direction"]),
                status=data["status"],
                contract=str(data["contract"]),
                time_s=None if time is None else _time(time),
                memory=None if memory is None else _memory(memory),
                kernels=None if kernels is None else tuple(kernels),
                **{name: data.get(name) for name in _PLAIN},
            )
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise BadRun(f"a record cannot be read: {type(error).__name__}: {error}") from None


_PLAIN = (
    "reason",
    "impl_version",
    "host_us",
    "compile_s",
    "kernel_s",
    "note",
    "percent_of_peak",
    "percent_of_peak_at_clock",
    "telemetry",
    "accuracy",
)


def _time(data: Mapping[str, Any]) -> Time:
    ci = data.get("ci")
    time = Time(
        float(data["median"]), float(data["p10"]), float(data["p90"]), int(data["n"]), None if ci is None else float(ci)
    )
    if not all(math.isfinite(value) and value > 0 for value in (time.median, time.p10, time.p90)):
        raise ValueError(f"time_s {dict(data)} is not positive and finite")
    return time


def _memory(data: Mapping[str, Any]) -> Memory:
    saved = data.get("saved_bytes")
    return Memory(int(data["peak_bytes"]), int(data["workspace_bytes"]), None if saved is None else int(saved))


@dataclass(frozen=True, slots=True)
class Run:
    """A whole run: its records and what it was taken with.

    ``machine`` holds what must agree for two runs to be comparable (device, driver, power limit, CPU, threads);
    ``environment`` what explains a difference (versions of torch, CUDA, Python, this tool); ``implementations`` maps
    each known name to ``{"version", "missing"}``, ``missing`` being ``None`` or the reason, and to ``"resources"``
    (:func:`pytest_attn.perf.resources.resources_of`) where it ran and has compiled kernels. ``instruments`` says what
    was measured with (:meth:`pytest_attn.perf.instruments.Instruments.describe`), ``shard`` which part of the grid this
    is, as ``"i/n"``, or ``None`` for the whole.
    """

    records: tuple[Record, ...]
    grid: str
    machine: Mapping[str, Any]
    environment: Mapping[str, Any]
    implementations: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    instruments: Mapping[str, Any] = field(default_factory=dict)
    shard: str | None = None

    def statuses(self) -> Counter[str]:
        """Count the records by status."""
        return Counter(record.status for record in self.records)

    def header(self) -> dict[str, Any]:
        """Return the top-level key ``attn`` of the JSON: all but the timed records, which lie in ``extra_info``."""
        return {
            "schema": SCHEMA,
            "grid": self.grid,
            "shard": self.shard,
            "instruments": dict(self.instruments),
            "machine": dict(self.machine),
            "environment": dict(self.environment),
            "implementations": dict(self.implementations),
            "not_timed": [record.to_dict() for record in self.records if record.time_s is None],
        }


def load_run(path: str | Path, left_out: list[str] | None = None) -> Run:
    """Read the JSON that ``pytest -m perf --benchmark-json=FILE`` wrote.

    A record that cannot be read makes the whole file unusable, unless ``left_out`` is given: then the other records
    are read, and a sentence on what was left out is appended to it.

    Raises :class:`BadRun` with one sentence when the file is missing, truncated, empty or not ours.
    """
    name = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise BadRun(f"cannot read {name}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise BadRun(f"{name} is not JSON") from None
    if not text.strip():
        raise BadRun(f"{name} is empty")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRun(f"{name} is not JSON, or was cut short: {error}") from None
    except RecursionError:
        raise BadRun(f"{name} is nested too deeply to be a run") from None
    header = data.get("attn") if isinstance(data, dict) else None
    if not isinstance(header, dict) or not isinstance(data.get("benchmarks"), list):
        raise BadRun(f"{name} has no attention results; write it with: pytest -m perf --benchmark-json={name}")
    if header.get("schema") != SCHEMA:
        raise BadRun(f"{name} has schema {header.get('schema')!r}; this version reads {SCHEMA}")
    try:
        timed = [b["extra_info"]["attn"] for b in data["benchmarks"] if "attn" in b.get("extra_info", {})]
        records = _records([*timed, *header.get("not_timed", [])], name, left_out)
        return Run(
            records,
            str(header["grid"]),
            dict(header["machine"]),
            dict(header["environment"]),
            dict(header.get("implementations", {})),
            name,
            dict(header.get("instruments", {})),
            header.get("shard"),
        )
    except BadRun as error:
        raise BadRun(f"{name}: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadRun(f"{name} cannot be read as a run: {type(error).__name__}: {error}") from None


def _records(items: list[Any], name: str, left_out: list[str] | None) -> tuple[Record, ...]:
    records, errors = [], []
    for item in items:
        try:
            if not isinstance(item, dict):
                raise BadRun("a record is no JSON object")
            records.append(Record.from_dict(item))
        except BadRun as error:
            if left_out is None:
                raise
            errors.append(str(error))
    if errors and not records:
        raise BadRun(errors[0])
    if errors and left_out is not None:
        left_out.append(f"{name}: {len(errors)} of {len(items)} records left out; the first: {errors[0]}")
    return tuple(records)
