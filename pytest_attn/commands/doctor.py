"""``attn doctor``: what is here, what is missing and how to get it."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_attn.commands.probing import first_line, package_version, version_of
from pytest_attn.probe import state_of
from pytest_attn.text import paint, printable, table, wants_colour

if TYPE_CHECKING:
    from types import ModuleType

    import torch

HELP = "say what is here, what is missing and how to get it; exit 1 when torch is missing"

_COLOURS = {"missing": "yellow", "broken": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: ``state`` is ``ok``, ``missing`` or ``broken``; ``get`` says what a user does about it."""

    state: str
    name: str
    detail: str
    get: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``attn doctor`` takes no arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Print the findings, section by section; return 1 when torch cannot be imported, otherwise 0."""
    torch, why = _import_torch()
    sections: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("basics", lambda: _basics(torch, why)),
        ("devices", lambda: _devices(torch)),
        ("compilers and tools", lambda: _compilers(torch)),
        ("optional packages", _optional),
        ("implementations", lambda: _implementations(torch)),
    )
    colour = wants_colour(sys.stdout)
    missing = 0
    for title, find in sections:
        findings = list(find())
        missing += sum(finding.state != "ok" for finding in findings)
        print(paint(title, "bold", colour))
        lines = table(("", "", ""), [(f.state, f.name, _detail(f)) for f in findings])[1:]
        for finding, line in zip(findings, lines, strict=True):
            name = _COLOURS.get(finding.state)
            print(f"  {line if name is None else paint(line, name, colour)}")
    if torch is None:
        print("attn doctor: torch is missing, so nothing can run")
        return 1
    print(f"attn doctor: ready; {missing} optional {'thing' if missing == 1 else 'things'} missing")
    return 0


def _detail(finding: Finding) -> str:
    return printable(f"{finding.detail}; get it: {finding.get}" if finding.get else finding.detail)


def _import_torch() -> tuple[ModuleType | None, str]:
    """Return torch, or ``None`` and why: a package that is there may still lack a library."""
    try:
        return importlib.import_module("torch"), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _basics(torch: Any, why: str) -> Iterator[Finding]:
    yield Finding("ok", "Python", f"{platform.python_version()}, {sys.executable}")
    if torch is None:
        yield Finding("missing", "torch", why, "pip install torch")
    else:
        cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
        yield Finding("ok", "torch", f"{torch.__version__}, {cuda}, {f'cuDNN {cudnn}' if cudnn else 'no cuDNN'}")
    for package in ("pytest", "pytest-benchmark", "hypothesis"):
        yield _package(package, f"pip install {package}")


def _devices(torch: Any) -> Iterator[Finding]:
    if torch is None:
        yield Finding("missing", "devices", "cannot be looked for without torch")
        return
    from pytest_attn.perf.device import cpu_name

    yield Finding("ok", "cpu", f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads in torch")
    driver = first_line(("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield Finding("ok", f"cuda:{index}", _describe(torch.cuda.get_device_properties(index)))
    elif driver is None:
        yield Finding("missing", "cuda", "no NVIDIA GPU, or no driver for it; everything runs on the CPU")
    elif torch.version.cuda is None:
        yield Finding(
            "missing", "cuda", "there is a GPU, but this torch has no CUDA", "https://pytorch.org/get-started"
        )
    else:
        yield Finding(
            "broken", "cuda", f"there is a GPU, but torch's CUDA {torch.version.cuda} cannot use driver {driver}"
        )
    if driver is not None:
        yield Finding("ok", "driver", driver)


def _describe(properties: torch.cuda._CudaDeviceProperties) -> str:
    capability = f"{properties.major}.{properties.minor}"
    return f"{properties.name}, compute capability {capability}, {properties.total_memory / 2**30:.1f} GiB"


def _compilers(torch: Any) -> Iterator[Finding]:
    # torch.utils.cpp_extension builds with $CXX where it is set, otherwise with c++; it takes no arguments with it.
    compiler, nvcc, ncu = os.environ.get("CXX", "c++"), "nvcc", "ncu"
    if torch is not None:
        from attn_impls.tiled.build import cuda_tool

        nvcc, ncu = cuda_tool(nvcc) or nvcc, cuda_tool(ncu) or ncu  # a toolkit is seldom on the path
    programs = (
        ([compiler, "--version"], "", "the compiler for tiled-cpu and tiled-seq", "apt-get install g++"),
        ([nvcc, "--version"], "release", "the compiler for our CUDA kernels", "the CUDA toolkit that torch names"),
        (["ninja", "--version"], "", "the build tool of torch's extensions", "pip install ninja"),
        ([ncu, "--version"], "Version", "Nsight Compute, for attn profile", "the CUDA toolkit, or nsight-compute"),
    )
    for command, containing, purpose, get in programs:
        line, name = first_line(command, containing), Path(command[0]).name
        if line is None:
            yield Finding("missing", name, f"{purpose}; not found, or does not run", get)
        else:
            yield Finding("ok", name, line)


def _optional() -> Iterator[Finding]:
    for package in ("matplotlib", "pandas", "jinja2"):
        yield _package(package, "pip install 'pytest-attn[report]', for attn report")
    yield _package("nvidia-ml-py", "pip install 'pytest-attn[gpu]', for driver, clocks and power of a GPU")


def _package(name: str, get: str) -> Finding:
    version = package_version(name)
    return Finding("missing", name, "not installed", get) if version is None else Finding("ok", name, version)


def _implementations(torch: Any) -> Iterator[Finding]:
    from attn_impls import discover

    here = {"cpu"} if torch is None or not torch.cuda.is_available() else {"cuda", "cpu"}
    registry = discover()
    for name, implementation in registry.items():
        # Asked about the best device of this machine that it claims, so that an old GPU is told as such.
        devices = sorted(here & implementation.capabilities.devices, reverse=True)
        state, reason = state_of(implementation, devices[0] if devices else None)
        if reason is None:
            where = f" on {' and '.join(devices)}" if devices else ""
            yield Finding("ok", name, f"{version_of(implementation)}{where}")
        else:
            yield Finding(state, name, reason, implementation.advice(reason))
    for name, reason in registry.broken.items():
        yield Finding("broken", f"entry point {name}", reason)
