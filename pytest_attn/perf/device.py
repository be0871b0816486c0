"""Which device a run uses, and what identifies the machine that its numbers belong to."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pytest_attn.out_of_memory import cuda_error


def pick_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:i``; ``auto`` is CUDA where there is one.

    Raises ``ValueError`` with one sentence for another name, or a device that is not there.
    """
    kind, _, index = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdigit())):
        raise ValueError(f"device {name!r} is not one of auto, cpu, cuda, cuda:0, cuda:1, ...")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not count):
        return torch.device("cpu")
    if not count:
        raise ValueError(f"device {name!r} asked for, but this machine has no CUDA device that torch can use")
    wanted = int(index or 0)
    if wanted >= count:
        raise ValueError(f"device {name!r} asked for, but this machine has {count} CUDA device(s)")
    return torch.device("cuda", wanted)


def lost_device(device: torch.device) -> str | None:
    """Return the first line of the error that has left ``device`` unusable for this process, or ``None``.

    After an illegal address in one kernel every later CUDA call of the process fails with it.
    """
    return cuda_error(device) if device.type == "cuda" else None


def machine(device: torch.device) -> dict[str, Any]:
    """Return what must agree for two runs to be compared: GPU, driver and power limit, or CPU and threads."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {
            "device": properties.name,
            "device_type": "cuda",
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            **_nvml(device),
        }
    return {
        "device": cpu_name(),
        "device_type": "cpu",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def environment() -> dict[str, Any]:
    """Return the versions that explain a difference between two runs of one machine."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
    }
    for package in ("pytest-attn", "pytest", "pytest-benchmark", "hypothesis", "triton"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def cpu_name() -> str:
    """Return the processor's model name, as the kernel reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _nvml(device: torch.device) -> dict[str, Any]:
    """Return the driver and power limit through NVML, ``None`` where its Python binding is not installed."""
    try:
        import pynvml
    except ImportError:
        return {"driver": None, "power_limit_w": None}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:  # the package without the driver's library
        return {"driver": None, "power_limit_w": None, "nvml": str(error)}
    try:
        # By UUID: NVML's indices ignore CUDA_VISIBLE_DEVICES.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return {
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "power_limit_w": pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000,
        }
    except pynvml.NVMLError as error:
        return {"driver": None, "power_limit_w": None, "nvml": str(error)}
    finally:
        pynvml.nvmlShutdown()
