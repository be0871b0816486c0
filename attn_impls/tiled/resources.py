"""Registers and local memory of the kernels in a built CUDA library, as the toolkit's ``cuobjdump`` reads them there.

The numbers are the compiler's and stand in the library, so that a cached build has them too. Those of CUDA 12.8 and
13.1 print two lines for each kernel, of which STACK is the memory that spilled registers go to::

     Function _ZN4attn5spillIfLi60EEEvPT_:
      REG:32 STACK:7416 SHARED:1024 LOCAL:0 CONSTANT[0]:536 TEXTURE:0 SURFACE:0 SAMPLER:0
"""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from attn_impls.implementation import Resources, Unavailable
from attn_impls.tiled import build

_USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_TIMEOUT_S = 60


def resource_usage(library: Path) -> dict[str, Resources]:
    """Return what each kernel in ``library`` takes of its multiprocessor, by its name without parameters.

    A kernel that the library holds more than once, such as once an architecture, counts with the most of each.

    Raises :class:`~attn_impls.implementation.Unavailable` when the library or a tool is not there, or a tool fails.
    """
    if not library.is_file():
        raise Unavailable(f"{library.name} is not built")
    cuobjdump = _cuobjdump()
    if cuobjdump is None:
        raise Unavailable("cuobjdump is not here; it is part of the CUDA toolkit, and of the package triton")
    demangler = shutil.which("c++filt")
    if demangler is None:
        raise Unavailable("c++filt is not on PATH; it is part of binutils")
    found = parse(_output(cuobjdump, "--dump-resource-usage", str(library)))
    if not found:
        raise Unavailable(f"cuobjdump finds no kernel in {library.name}")
    # The mangled name of an anonymous namespace holds a hash of its file, which the name as it is written does not.
    names = _output(demangler, "--no-params", given="\n".join(mangled for mangled, _ in found)).splitlines()
    usage: dict[str, Resources] = {}
    for name, (_, one) in zip(names, found, strict=True):
        usage[name] = _most(usage.get(name, one), one)
    return usage


def parse(text: str) -> list[tuple[str, Resources]]:
    r"""Return the mangled name and the resources of each kernel that ``cuobjdump --dump-resource-usage`` printed.

    >>> parse(" Function f:\n  REG:32 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:536 TEXTURE:0 SURFACE:0 SAMPLER:0")
    [('f', {'registers': 32, 'local_bytes': 16, 'shared_bytes': 1024})]
    """
    return [
        (name, Resources(registers=int(registers), local_bytes=int(stack) + int(local), shared_bytes=int(shared)))
        for name, registers, stack, shared, local in _USAGE.findall(text)
    ]


def _most(one: Resources, other: Resources) -> Resources:
    return Resources(
        registers=max(one["registers"], other["registers"]),
        local_bytes=max(one["local_bytes"], other["local_bytes"]),
        shared_bytes=max(one["shared_bytes"], other["shared_bytes"]),
    )


def _cuobjdump() -> str | None:
    """Return the toolkit's, or the one that triton brings, which torch for CUDA depends on."""
    if (found := build.cuda_tool("cuobjdump")) is not None:
        return found
    triton = find_spec("triton")
    folders = [] if triton is None else triton.submodule_search_locations or []
    paths = (shutil.which("cuobjdump", path=str(Path(folder, "backends", "nvidia", "bin"))) for folder in folders)
    return next((path for path in paths if path), None)


def _output(tool: str, *arguments: str, given: str = "") -> str:
    try:
        ended = subprocess.run(
            [tool, *arguments], input=given, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{Path(tool).name} cannot be used: {error}") from None
    if ended.returncode:
        said = (ended.stderr.strip() or ended.stdout.strip()).splitlines()
        raise Unavailable(f"{Path(tool).name} ended with exit code {ended.returncode}: {said[0] if said else 'silent'}")
    return ended.stdout
