"""One point of the course script's benchmark: its problem, its file's name, its measurement, its JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attn_impls.problem import CAUSAL, DTYPE_BYTES, FULL, Direction, Problem
from pytest_attn.commands.errors import UserError
from pytest_attn.text import seconds

if TYPE_CHECKING:
    import torch

    from attn_impls import Implementation
    from pytest_attn.perf.instruments import Instruments
    from pytest_attn.perf.record import Record

DTYPE = "fp16"
"""The course script's dtype, on every device."""

NAMES = {Direction.FWD: "forward", Direction.BWD: "backward", Direction.FWD_BWD: "forward_backward"}
"""The script's names of the directions."""


@dataclass(frozen=True, slots=True)
class Point:
    """What the script is called with: sizes, the implementation as the user names it, causal or not."""

    batch_size: int
    seq_len: int
    num_heads: int
    emb_dim: int
    impl: str
    causal: bool

    @property
    def file_name(self) -> str:
        """The script's file name: ``..._causal_causal.json`` when causal, ``..._causal.json`` when not."""
        # "causal" stands in both: the script joins the option's name and, where it is on, the option.
        impl = re.sub(r"[^\w.-]", "_", self.impl)  # module:function is no file name everywhere
        sizes = f"bs{self.batch_size}_sl{self.seq_len}_nh{self.num_heads}_ed{self.emb_dim}"
        return f"result_{sizes}_{impl}_causal{'_causal' if self.causal else ''}.json"

    def __str__(self) -> str:
        sizes = f"bs{self.batch_size} sl{self.seq_len} nh{self.num_heads} ed{self.emb_dim}"
        return f"{sizes} {self.impl}{' causal' if self.causal else ''}"

    def problem(self) -> Problem:
        """Return the attention problem, head_dim = emb_dim / num_heads.

        Raises :class:`UserError` when that does not divide.
        """
        if self.emb_dim % self.num_heads:
            raise UserError(f"emb_dim {self.emb_dim} is not divisible by num_heads {self.num_heads}")
        heads, seq, head_dim = self.num_heads, self.seq_len, self.emb_dim // self.num_heads
        mask = CAUSAL if self.causal else FULL
        return Problem(self.batch_size, heads, heads, seq, seq, head_dim, DTYPE, mask)


@dataclass(frozen=True, slots=True)
class Measured:
    """The records of a point, by direction."""

    problem: Problem
    records: Mapping[Direction, Record]

    @property
    def outcome(self) -> str:
        """``failed`` when a direction failed, else ``oom`` when one ran out of memory, else ``ok``."""
        statuses = {record.status for record in self.records.values()}
        # What an implementation never claimed is no failure, as long as something was measured.
        if statuses <= {"unsupported"} or statuses - {"ok", "oom", "unsupported"}:
            return "failed"
        return "oom" if "oom" in statuses else "ok"

    @property
    def complaints(self) -> list[str]:
        """A sentence for every direction without a number."""
        return [
            f"{NAMES[direction]}: {record.status}{f', {record.reason}' if record.reason else ''}"
            for direction, record in self.records.items()
            if record.status != "ok"
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the script's JSON: exactly its keys, with ``None`` for what has no number worth keeping."""
        data: dict[str, Any] = {}
        for direction, name in NAMES.items():
            record = self.records[direction]
            ok = record.status == "ok" and record.time_s is not None
            data[name] = {
                "time(s)": record.time_s.median if ok and record.time_s else None,
                "FLOPS(TFLOPs/s)": record.tflops if ok else None,
            }
        both = self.records[Direction.FWD_BWD]
        memory = both.memory if both.status == "ok" else None
        data["peak_memory_usage(MB)"] = (
            None if memory is None else (memory.peak_bytes + input_bytes(self.problem)) / 2**20
        )
        return data

    def __str__(self) -> str:
        parts = []
        for direction, name in NAMES.items():
            record = self.records[direction]
            time = seconds(record.time_s.median) if record.status == "ok" and record.time_s else record.status
            parts.append(f"{name} {time}")
        memory = self.to_json()["peak_memory_usage(MB)"]
        return ", ".join([*parts, f"peak {memory:.1f} MB"] if memory is not None else parts)


def input_bytes(problem: Problem) -> int:
    """Return the bytes of q, k, v and the upstream gradient, which ``torch.cuda.max_memory_allocated`` counts too."""
    row = DTYPE_BYTES[problem.dtype] * problem.batch * problem.head_dim
    return row * (2 * problem.heads * problem.q_len + 2 * problem.kv_heads * problem.kv_len)


def why_not(implementation: Implementation, problem: Problem, device: torch.device) -> str | None:
    """Return why not even the forward pass is claimed, or ``None``."""
    return implementation.capabilities.why_not(problem, Direction.FWD, device.type)


def measure_point(implementation: Implementation, problem: Problem, instruments: Instruments) -> Measured:
    """Measure the three directions under the contract of ``instruments``.

    After a direction that ran out of memory the rest, which hold at least as much, are ``oom`` without being tried.
    """
    from attn_impls import Unavailable
    from pytest_attn.perf import measure as measuring
    from pytest_attn.perf.record import Record

    records: dict[Direction, Record] = {}
    for direction in NAMES:
        earlier = next((NAMES[past] for past, record in records.items() if record.status == "oom"), None)
        status, reason = "oom", f"not tried, {earlier} ran out of memory"
        if earlier is None:
            try:
                records[direction] = measuring.measure_alone(implementation, problem, direction, instruments).record
                continue
            except Unavailable as error:  # an extension that did not build, say
                status, reason = "error", str(error)
        records[direction] = Record(implementation.name, problem, direction, status, instruments.contract.id, reason)
    return Measured(problem, records)
