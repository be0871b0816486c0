"""Builds our C++ and CUDA sources when they are first used, and keeps what was built.

PyTorch's ``cpp_extension.load`` does the work. Around it stand three things that it lacks: a cache name that carries
everything the binary depends on, so that a cached one is loaded without starting a compiler; a lock that the kernel
releases when its owner dies (PyTorch's own is a file that a killed build leaves behind, and that hangs the next one);
and errors cut to what the compiler complained about first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from attn_impls.implementation import Unavailable

CSRC = Path(__file__).parent / "csrc"
_ERROR_LINES = 15
_COMPLAINT = re.compile(r"\b(error|fatal) ?:|cannot find -l|undefined reference")  # of a compiler or a linker
# What ptxas says where it makes the products of wgmma wait for each other, or ignores setmaxnreg, with the reason: the
# kernel would be right, and slower by a factor that nothing else explains.
SERIALISED = r"\(C75\d\d\).*"


@dataclass(frozen=True, slots=True)
class Extension:
    """A library of torch operators that is built from source on the machine where it runs.

    Attributes:
        name: of the library, and the start of its cache folder's name.
        sources: files to compile, ``.cpp`` or ``.cu``; each is one compiler process.
        folders: folders of their headers, all of which go into the cache key, so that a changed one rebuilds.
        cflags: flags of the C++ compiler.
        cuda_cflags: flags of nvcc.
        native: whether the flags make code for this very CPU, so that another one must not load it.
        architecture: of the CUDA device that alone can run it, as ``TORCH_CUDA_ARCH_LIST`` writes it; ``None`` where
            it is built for the device that is there.
        forbidden: a regular expression of what nvcc must not say, which fails the build; empty for none.
    """

    name: str
    sources: tuple[Path, ...]
    folders: tuple[Path, ...] = ()
    cflags: tuple[str, ...] = ()
    cuda_cflags: tuple[str, ...] = ()
    native: bool = False
    architecture: str | None = None
    forbidden: str = ""

    @property
    def uses_cuda(self) -> bool:
        """Whether nvcc takes part."""
        return any(source.suffix == ".cu" for source in self.sources)


_outcomes: dict[Extension, str | None] = {}  # of this process: why the build failed, None when it is loaded
_mutex = threading.RLock()


def why_not(extension: Extension) -> str | None:
    """Say in one sentence why ``extension`` cannot be built here, or ``None``. Builds nothing."""
    if extension in _outcomes:
        return _outcomes[extension]
    if library(extension).with_suffix(".built").exists():
        return None
    if find_spec("setuptools") is None:
        return "building it needs the package setuptools (pip install setuptools)"
    if shutil.which("ninja") is None:
        return "building it needs ninja on PATH (pip install ninja)"
    compiler = _compiler()
    if shutil.which(compiler) is None:
        return f"building it needs a C++ compiler; {compiler} is not on PATH (set CXX to name another)"
    if extension.uses_cuda and cuda_tool("nvcc") is None:
        return "building it needs nvcc; install the CUDA toolkit or set CUDA_HOME"
    return None


def load(extension: Extension) -> None:
    """Load the operators of ``extension`` into this process, after building them if the cache lacks them.

    Raises :class:`~attn_impls.implementation.Unavailable` with the compiler's first errors when the build fails; the
    failure is remembered, so that later calls raise at once.
    """
    with _mutex:
        reason = why_not(extension)
        if reason is None and extension not in _outcomes:
            reason = _outcomes[extension] = _build_and_load(extension)
        if reason is not None:
            raise Unavailable(f"{extension.name}: {reason}")


def library(extension: Extension) -> Path:
    """Return where the built library lies, or will lie: a folder of its own for each state of its sources."""
    name = f"{extension.name}_{_key(extension)}"
    return _cache_root() / name / f"{name}.so"


def _build_and_load(extension: Extension) -> str | None:
    target = library(extension)
    # The library may exist half written; the marker is made only after it was loaded once.
    marker = target.with_suffix(".built")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / "flock"):
            if marker.exists():
                load_library: Callable[[str], None] = torch.ops.load_library
                load_library(str(target))
            else:
                _build(extension, target)
                marker.touch()
    except Exception as error:
        return f"its build failed:\n{_first_errors(str(error))}"
    return None


def _build(extension: Extension, target: Path) -> None:
    from torch.utils import cpp_extension

    # We hold the lock, so a file that PyTorch's baton left here belongs to a build that was killed.
    (target.parent / "lock").unlink(missing_ok=True)
    _say(f"building {extension.name} ({', '.join(s.name for s in extension.sources)}) in {target.parent}")
    start = time.perf_counter()
    cuda = {"TORCH_CUDA_ARCH_LIST": _cuda_architecture(extension), "PYTORCH_NVCC": _nvcc_command(extension)}
    with _environment(**cuda) if extension.uses_cuda else nullcontext():
        cpp_extension.load(
            name=target.stem,
            sources=[str(source) for source in extension.sources],
            extra_cflags=list(extension.cflags),
            extra_cuda_cflags=list(extension.cuda_cflags),
            build_directory=str(target.parent),
            with_cuda=extension.uses_cuda,
            is_python_module=False,
        )
    _say(f"built {extension.name} in {time.perf_counter() - start:.1f} s")


def _nvcc_command(extension: Extension) -> str:
    """Return the command that is to run as nvcc, or nothing where PyTorch's choice will do."""
    from torch.utils import cpp_extension

    if not extension.forbidden:
        return ""
    nvcc = os.environ.get("PYTORCH_NVCC") or shlex.quote(str(Path(cpp_extension.CUDA_HOME or "", "bin", "nvcc")))
    script = Path(__file__).with_name("strict_nvcc.py")
    return f"{shlex.join([sys.executable, str(script), extension.forbidden])} {nvcc}"


def _key(extension: Extension) -> str:
    """Hash everything that decides what the compiler makes."""
    parts = [torch.__version__, _compiler(), *extension.cflags, *extension.cuda_cflags]
    if extension.native:
        parts.append(_cpu_model())
    if extension.uses_cuda:
        parts += [_cuda_architecture(extension), _nvcc_version(cuda_tool("nvcc")), os.environ.get("PYTORCH_NVCC", "")]
        parts.append(extension.forbidden)
    digest = hashlib.sha256("\0".join(parts).encode())
    headers = (header for folder in extension.folders for header in sorted(folder.glob("*.h")))
    for file in (*extension.sources, *headers):
        digest.update(f"\0{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _cache_root() -> Path:
    override = os.environ.get("TORCH_EXTENSIONS_DIR")
    if override:
        return Path(override)
    # As torch.utils.cpp_extension does, but without its import, which takes a second.
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    device = f"cu{torch.version.cuda.replace('.', '')}" if torch.version.cuda else "cpu"
    return base / "torch_extensions" / f"py{sys.version_info.major}{sys.version_info.minor}_{device}"


def _compiler() -> str:
    return os.environ.get("CXX", "c++")


def cuda_tool(name: str) -> str | None:
    """Return the path of a program of the CUDA toolkit, such as ``nvcc``, or ``None`` where it is not here."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = (shutil.which(name, path=str(Path(home) / "bin")) for home in homes if home)
    return next((path for path in found if path), None) or shutil.which(name)


@cache
def _nvcc_version(nvcc: str | None) -> str:
    """Return what ``nvcc --version`` says: another ptxas allots registers otherwise."""
    if nvcc is None:
        return ""
    try:
        return subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


@cache
def _cpu_model() -> str:
    """Name the CPU and its instruction sets, which is what ``-march=native`` looks at."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        # x86 says "model name" and "flags", ARM "CPU part" and "Features".
        told = [line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features"))]
        return "\n".join(dict.fromkeys(told))
    return f"{platform.machine()} {platform.processor()}"


def _cuda_architecture(extension: Extension) -> str:
    """Return the visible device's architecture as ``TORCH_CUDA_ARCH_LIST`` writes it, e.g. ``9.0a``.

    The extension's own wins, then a list that the user set. The ``a`` unlocks what only that architecture has, such as
    Hopper's wgmma.
    """
    chosen = extension.architecture or os.environ.get("TORCH_CUDA_ARCH_LIST")
    if chosen:
        return chosen
    if not torch.cuda.is_available():
        return ""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}{'a' if major >= 9 else ''}"


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables for a while; an empty value leaves its variable alone."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if value})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``. The kernel drops it when the process ends, in whatever way."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another process that builds in {path.parent}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _first_errors(output: str) -> str:
    """Cut a build's output to its first errors and the lines that explain them."""
    lines = output.splitlines()
    first = next((i for i, line in enumerate(lines) if _COMPLAINT.search(line)), None)
    if first is None:
        return "\n".join(lines[-_ERROR_LINES:])
    return "\n".join(line.rstrip() for line in lines[first : first + _ERROR_LINES])


def _say(text: str) -> None:
    print(f"attn_impls: {text}", file=sys.stderr, flush=True)
