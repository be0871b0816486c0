"""What the device was doing while it was timed: clock, power, temperature, and who else was on it. NVML, read only."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import torch

# A look costs a quarter of a millisecond of the host's time, and clocks move slower than this.
_LEAST_INTERVAL_S = 0.01

# Set for a process that works for another one: the number of that one.
RUN_PID = "PYTEST_ATTN_RUN_PID"

# Bits of nvmlClocksEventReasons, by the names that nvidia-smi prints (nvml.h, "nvmlClocksEventReasons").
_REASONS = {
    0x1: "idle",
    0x2: "applications clocks setting",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clock setting",
}


class NoTelemetry(RuntimeError):
    """NVML cannot be used here; the message is the reason."""


class Telemetry:
    """Samples of one device, kept apart for whatever is being timed.

    Nothing here changes the device's state.
    """

    def __init__(self, device: torch.device) -> None:
        """Open NVML.

        Raises :class:`NoTelemetry` where nvidia-ml-py or the driver's library is missing.
        """
        try:
            import pynvml
        except ImportError:
            raise NoTelemetry("nvidia-ml-py is not installed") from None
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            # By UUID: NVML's indices ignore CUDA_VISIBLE_DEVICES.
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError as error:
            raise NoTelemetry(f"NVML: {error}") from None
        self._samples: dict[object, list[dict[str, Any]]] = {}
        self._subject: object = None
        self._last = 0.0

    def watch(self, subject: object) -> None:
        """Keep the samples that follow with ``subject``."""
        self._subject = subject
        self._last = 0.0

    def look(self) -> None:
        """Take a sample, unless the last one is too recent to differ."""
        now = time.perf_counter()
        if self._subject is None or now - self._last < _LEAST_INTERVAL_S:
            return
        self._last = now
        self._samples.setdefault(self._subject, []).append(self._sample())

    def joules(self) -> float | None:
        """Return the device's energy counter, in J since the driver was loaded; ``None`` where it has none.

        It moves about ten times a second, and reading it takes milliseconds.
        """
        millijoules = self._read(lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        return None if millijoules is None else float(millijoules) / 1000

    def collect(self, subject: object) -> dict[str, Any] | None:
        """Return and forget what was seen of ``subject``: medians, the reasons' names, the most foreign processes."""
        samples = self._samples.pop(subject, None)
        return None if not samples else summary(samples)

    def _sample(self) -> dict[str, Any]:
        nvml, handle = self._nvml, self._handle
        return {
            "sm_mhz": self._read(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            "power_w": self._read(self._watts),
            "temp_c": self._read(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
            "reasons": self._read(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
            "foreign": self._read(self._foreign),
        }

    def _read(self, query: Any) -> Any:
        try:
            return query()
        except (self._nvml.NVMLError, AttributeError):  # not on this device, or an older nvidia-ml-py
            return None

    def _watts(self) -> float | None:
        """Return the momentary power, which lags by tens of milliseconds.

        nvmlDeviceGetPowerUsage is an average over a whole second on recent devices.
        """
        nvml = self._nvml
        (value,) = nvml.nvmlDeviceGetFieldValues(self._handle, [nvml.NVML_FI_DEV_POWER_INSTANT])
        if value.nvmlReturn == nvml.NVML_SUCCESS:
            return float(value.value.uiVal) / 1000
        return float(nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1000

    def _foreign(self) -> int | None:
        """Count compute processes that are not of this run; ``None`` where NVML does not even name this one.

        In a container NVML may name processes by numbers that mean nothing inside.
        """
        pids = {process.pid for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)}
        return sum(not _of_this_run(pid) for pid in pids) if os.getpid() in pids else None


def summary(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over ``samples``, the reasons in any of them, and how many samples there were."""

    def seen(key: str) -> list[Any]:
        return [sample[key] for sample in samples if sample[key] is not None]

    def middle(key: str) -> float | None:
        return float(median(values)) if (values := seen(key)) else None

    reasons: Counter[str] = Counter()
    for bits in seen("reasons"):
        reasons.update(name for bit, name in _REASONS.items() if bits & bit)
    foreign = seen("foreign")
    return {
        "sm_mhz": middle("sm_mhz"),
        "power_w": middle("power_w"),
        "temp_c": middle("temp_c"),
        "clock_reasons": sorted(reasons) if seen("reasons") else None,
        "foreign_processes": max(foreign) if foreign else None,
        "samples": len(samples),
    }


def _of_this_run(pid: int) -> bool:
    """Tell whether ``pid`` is this run's process or one that it started for an isolated implementation."""
    run = int(os.environ.get(RUN_PID, os.getpid()))
    return run in (pid, _parent(pid))


def _parent(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])
