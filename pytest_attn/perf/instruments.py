"""What measures on one device, made once and kept: calibration and NVML cost more than a record may."""

from __future__ import annotations

import contextlib

import torch

from pytest_attn.perf.ceiling import copy_gbps, product_tflops
from pytest_attn.perf.contract import Contract
from pytest_attn.perf.events import EventTimer
from pytest_attn.perf.kineto import Flush, KinetoTimer
from pytest_attn.perf.telemetry import NoTelemetry, Telemetry
from pytest_attn.perf.timers import Timer
from pytest_attn.perf.untraced import TracedRun
from pytest_attn.perf.wall import WallTimer


class Instruments:
    """The timer of a contract, the buffer that flushes L2, and NVML's view of the device, where there is one.

    Attributes:
        timer: gives rounds.
        flush: fills L2 (``None`` on a CPU).
        telemetry: NVML's view, or ``None``.
        no_telemetry: why there is none.
        traced_by: the run that has the timer's calibration and the names of the kernels, where no profiler is to start.
    """

    def __init__(self, device: torch.device, contract: Contract, traced_by: TracedRun | None = None) -> None:
        """Calibrate the timer of ``contract`` on ``device``, unless an earlier run did."""
        self.device = device
        self.contract = contract
        self.traced_by = traced_by
        self.flush: Flush | None = None
        self.telemetry, self.no_telemetry = _telemetry(device)
        self.timer = self._timer()
        self._products: dict[str, float | None] = {}
        self._copy: float | None = None

    def _timer(self) -> Timer:
        if self.contract.timer == "wall":
            return WallTimer()
        look = (lambda: None) if self.telemetry is None else self.telemetry.look
        if self.contract.timer == "kineto":
            kineto = KinetoTimer(self.device, while_busy=look)
            self.flush = kineto.flush
            return kineto
        known_s = None if self.traced_by is None else self.traced_by.overhead_s
        events = EventTimer(self.device, while_busy=look, overhead_s=known_s)
        self.flush = events.flush
        return events

    def take_ceilings(self, dtype: str) -> None:
        """Take what the machine reaches in ``dtype``, once; a brief or untraced process leaves that to others."""
        if self.contract.brief or self.traced_by is not None or dtype in self._products:
            return
        with torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext():
            if not self._products:
                self._copy = copy_gbps(self.timer, self.device)
            self._products[dtype] = product_tflops(self.timer, self.device, dtype)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # the implementations are to have all of the device's memory

    @property
    def overhead_s(self) -> float | None:
        """Seconds that the timer takes off each round, where it does."""
        return self.timer.overhead_s if isinstance(self.timer, EventTimer) else None

    def _overhead_from(self) -> str | None:
        if not isinstance(self.timer, EventTimer):
            return None
        return self.timer.overhead_from or (None if self.traced_by is None else self.traced_by.overhead_from)

    def describe(self) -> dict[str, object]:
        """Return the JSON form of what a reader needs to know of them."""
        return {
            "overhead_us": None if self.overhead_s is None else round(1e6 * self.overhead_s, 3),
            "overhead_from": self._overhead_from(),
            "flush_bytes": None if self.flush is None else self.flush.nbytes,
            "telemetry": self.no_telemetry or "nvml",
            "ceilings": {"tflops": dict(self._products), "gbps": self._copy} if self._products else None,
            "traced_by": None if self.traced_by is None else self.traced_by.source,
        }


def _telemetry(device: torch.device) -> tuple[Telemetry | None, str | None]:
    if device.type != "cuda":
        return None, "NVML knows no CPU"
    try:
        return Telemetry(device), None
    except NoTelemetry as reason:
        return None, str(reason)
