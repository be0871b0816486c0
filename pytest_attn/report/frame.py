"""Records as one tidy table: a row a record, whatever its status, so that nothing is lost on the way to a figure."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pytest_attn.perf.record import Record, Run
from pytest_attn.report.style import BASELINE, order
from pytest_attn.report.words import clean, short

#: Columns of the table, and of ``results.csv``, in order. Times in seconds, sizes in bytes.
COLUMNS = (
    *("run", "impl", "impl_version", "problem_id", "batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim"),
    *("embedding", "dtype", "mask", "softcap", "scale", "layout", "direction", "status", "reason", "contract"),
    *("time", "time_p10", "time_p90", "rounds", "tflops", "tflops_p10", "tflops_p90", "gbps"),
    *("memory", "workspace_bytes", "saved_bytes", "percent_of_peak", "percent_of_peak_at_clock"),
    *("host_us", "compile_s", "dense_tflops", "kernel_s", "kernel", "sm_mhz", "power_w", "energy_j", "note"),
    *("error_ratio", "speedup", "memory_share", "energy_per_token", "backward_ratio"),
)
_DERIVED = ("speedup", "memory_share", "energy_per_token", "backward_ratio")
#: Names that only the CSV uses: it must explain itself without this module.
CSV_NAMES = {
    "time": "time_s",
    "time_p10": "time_s_p10",
    "time_p90": "time_s_p90",
    "memory": "peak_bytes",
    "speedup": f"speedup_over_{BASELINE}",
    "memory_share": f"memory_share_of_{BASELINE}",
    "energy_per_token": "energy_j_per_token",
    "backward_ratio": "time_over_forward",
}
_CEILINGS = ("product_tflops", "copy_gbps")
# What is drawn or compared: a value of another type, NaN or infinity counts as not recorded.
_NUMBERS = (
    *("time", "time_p10", "time_p90", "tflops", "tflops_p10", "tflops_p90", "gbps", "memory", "percent_of_peak"),
    *(
        "percent_of_peak_at_clock",
        "host_us",
        "compile_s",
        "sm_mhz",
        "power_w",
        "energy_j",
        "error_ratio",
        "device_bytes",
        *_CEILINGS,
    ),
)


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Return a short name for each run: its machine's device where that tells runs apart, else its file."""
    devices = [
        clean(run.machine.get("device") or run.machine.get("gpu") or run.machine.get("cpu") or "") for run in runs
    ]
    names = [short(Path(run.source).stem if run.source else "run", 32) for run in runs]
    labels = [short(d, 32) if d and devices.count(d) == 1 else name for d, name in zip(devices, names, strict=True)]
    seen: Counter[str] = Counter()
    unique = []
    for label in labels:
        seen[label] += 1
        unique.append(label if seen[label] == 1 else f"{label} #{seen[label]}")
    return unique


def run_letter(number: int) -> str:
    """Return what stands for the run of that number, from 0, where there is little room: A, B, ..."""
    return chr(ord("A") + number) if number < 26 else f"#{number + 1}"


def records_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the tidy table of all records of ``runs``, which are of one contract.

    On top of :data:`COLUMNS` it has ``series`` (what a line in a figure is: the implementation, and the run where
    there are several), ``tag`` (the series in a few letters), ``run_number``, ``tokens`` (batch * q_len), ``group``
    (heads / kv_heads), ``flops``, ``min_bytes``, ``device`` (its name), ``device_bytes`` (its memory, where the run
    says it), ``product_tflops`` and ``copy_gbps`` (what a matrix product in the record's dtype and a copy reached),
    ``ok``, and ``record`` (its row). What is no finite number from 0 is missing, and no record is ``ok`` without a
    time above zero.
    """
    labels = run_labels(runs)
    rows = [
        {
            **_row(record),
            "run": label,
            "run_number": number,
            "device": clean(run.machine.get("device") or ""),
            "device_bytes": run.machine.get("memory_bytes"),
            **_ceilings(run, record.problem.dtype),
        }
        for number, (run, label) in enumerate(zip(runs, labels, strict=True))
        for record in run.records
    ]
    extra = ("run_number", "tokens", "group", "flops", "min_bytes", "device", "device_bytes", *_CEILINGS)
    frame = pd.DataFrame(rows, columns=[name for name in (*COLUMNS, *extra) if name not in _DERIVED])
    for column in _NUMBERS:
        frame[column] = frame[column].map(_number).astype(float)
    frame["ok"] = (frame["status"] == "ok") & (frame["time"] > 0)
    frame["record"] = range(len(frame))  # the page finds a record by it, from a mark or a cell
    several = len(runs) > 1
    frame["series"] = frame["impl"] + " · " + frame["run"] if several else frame["impl"]
    frame["tag"] = frame["impl"] + " " + frame["run_number"].map(run_letter) if several else frame["impl"]
    _against_baseline(frame)
    _against_forward(frame)
    frame["energy_per_token"] = frame["energy_j"] / frame["tokens"].where(frame["tokens"] > 0)
    # The clock is one number for all rounds, so the spread of the share is that of the speed.
    for end in ("p10", "p90"):
        spread = frame[f"tflops_{end}"] / frame["tflops"].where(frame["tflops"] > 0)
        frame[f"peak_at_clock_{end}"] = frame["percent_of_peak_at_clock"] * spread
    return frame


def series_order(frame: pd.DataFrame) -> list[str]:
    """Return the series of ``frame`` in the order of every legend and table: by run, then by implementation."""
    found = frame[["run_number", "impl", "series"]].drop_duplicates()
    triples = zip(found["run_number"], found["impl"], found["series"], strict=True)
    return [series for _, _, series in sorted(triples, key=lambda item: (item[0], order(item[1])))]


def to_csv(frame: pd.DataFrame) -> str:
    """Return ``results.csv``: every record, measured or not."""
    return str(frame[list(COLUMNS)].rename(columns=CSV_NAMES).to_csv(index=False, lineterminator="\n"))


def _number(value: object) -> float:
    """Return ``value``, NaN for what is no finite number from 0: a file may hold anything."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 <= value <= sys.float_info.max else math.nan  # type: ignore[arg-type,operator]


def _ceilings(run: Run, dtype: str) -> dict[str, object]:
    """Return what the run says that the machine reaches in ``dtype``; a file may hold anything there."""
    found = run.instruments.get("ceilings")
    found = found if isinstance(found, Mapping) else {}
    products = found.get("tflops")
    product = products.get(dtype) if isinstance(products, Mapping) else None
    return dict(zip(_CEILINGS, (product, found.get("gbps")), strict=True))


def _row(record: Record) -> dict[str, Any]:
    problem, time, memory = record.problem, record.time_s, record.memory
    telemetry, accuracy = (part if isinstance(part, Mapping) else {} for part in (record.telemetry, record.accuracy))
    kernels = [kernel for kernel in record.kernels or () if isinstance(kernel, Mapping)]
    flops = problem.flops(record.direction)
    return {
        "impl": record.impl,
        "impl_version": record.impl_version,
        "problem_id": problem.id,
        **{name: getattr(problem, name) for name in ("batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim")},
        "embedding": problem.embedding,
        "dtype": problem.dtype,
        "mask": problem.mask.id,
        "softcap": problem.softcap,
        "scale": problem.scale,
        "layout": problem.layout,
        "direction": record.direction.value,
        "status": record.status,
        "reason": record.reason,
        "contract": record.contract,
        "time": time.median if time else None,
        "time_p10": time.p10 if time else None,
        "time_p90": time.p90 if time else None,
        "rounds": time.n if time else None,
        "tflops": record.tflops,
        # The slow end of the time is the low end of the speed.
        "tflops_p10": flops / time.p90 / 1e12 if time and time.p90 > 0 else None,
        "tflops_p90": flops / time.p10 / 1e12 if time and time.p10 > 0 else None,
        "gbps": record.gbps,
        "memory": memory.peak_bytes if memory else None,
        "workspace_bytes": memory.workspace_bytes if memory else None,
        "saved_bytes": memory.saved_bytes if memory else None,
        "percent_of_peak": record.percent_of_peak,
        "percent_of_peak_at_clock": record.percent_of_peak_at_clock,
        "host_us": record.host_us,
        "compile_s": record.compile_s,
        "dense_tflops": record.dense_tflops,
        "kernel_s": record.kernel_s,
        "kernel": kernels[0].get("name") if kernels else None,
        **{name: telemetry.get(name) for name in ("sm_mhz", "power_w", "energy_j")},
        "note": record.note,
        "error_ratio": accuracy.get("error_ratio"),
        "tokens": problem.batch * problem.q_len,
        "group": problem.heads // problem.kv_heads,
        "flops": flops,
        "min_bytes": float(problem.min_bytes(record.direction)),
    }


def _against_baseline(frame: pd.DataFrame) -> None:
    """Add ``speedup`` and ``memory_share``: each ``ok`` record against the baseline's of the same run and case."""
    keys = ["run_number", "problem_id", "direction"]
    base = frame[(frame["impl"] == BASELINE) & frame["ok"]].drop_duplicates(keys).set_index(keys)
    index = pd.MultiIndex.from_frame(frame[keys])
    base_time = pd.Series(base["time"].reindex(index).to_numpy(), index=frame.index)
    base_memory = pd.Series(base["memory"].reindex(index).to_numpy(), index=frame.index)
    frame["speedup"] = (base_time / frame["time"]).where(frame["ok"] & (frame["time"] > 0))
    frame["memory_share"] = (frame["memory"] / base_memory).where(frame["ok"] & (base_memory > 0))


def _against_forward(frame: pd.DataFrame) -> None:
    """Add ``backward_ratio``: an ``ok`` backward time over the forward time of the same series and problem.

    ``backward_ratio_low`` and ``_high`` are what the two spreads allow: p10 over p90, and p90 over p10.
    """
    keys = ["series", "problem_id"]
    forward = frame[(frame["direction"] == "fwd") & frame["ok"]].drop_duplicates(keys).set_index(keys)
    index = pd.MultiIndex.from_frame(frame[keys])
    backward = frame["ok"] & (frame["direction"] == "bwd")
    ends = {"": ("time", "time"), "_low": ("time_p10", "time_p90"), "_high": ("time_p90", "time_p10")}
    for end, (above, below) in ends.items():
        divisor = pd.Series(forward[below].reindex(index).to_numpy(), index=frame.index)
        frame[f"backward_ratio{end}"] = (frame[above] / divisor).where(backward & (divisor > 0))
