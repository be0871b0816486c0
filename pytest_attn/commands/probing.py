"""Looking at what is installed without falling over it: every probe here answers, whatever it looks at."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attn_impls import Implementation

_PROBE_SECONDS = 20


def first_line(command: Sequence[str], containing: str = "") -> str | None:
    """Return the first line of a program's output that contains ``containing``.

    ``None`` when the program is not on the path, fails, hangs or prints no such line.
    """
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_PROBE_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return next((line.strip() for line in done.stdout.splitlines() if line.strip() and containing in line), None)


def package_version(name: str) -> str | None:
    """Return the version of an installed distribution, or ``None``."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def version_of(implementation: Implementation) -> str:
    """Return the implementation's version, or why it does not say."""
    try:
        return implementation.version()
    except Exception as error:
        return f"version unknown ({type(error).__name__}: {error})"
