"""Reading runs and writing JSON on behalf of a user, whose mistakes become sentences."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_attn.commands.errors import UserError

if TYPE_CHECKING:
    from pytest_attn.perf.record import Run


def read_run(path: Path, left_out: list[str] | None = None) -> Run:
    """Return the run that ``path`` holds; ``left_out`` is that of :func:`pytest_attn.perf.record.load_run`.

    Raises :class:`UserError` when the file is missing, truncated, empty or not a run.
    """
    from pytest_attn.perf.record import BadRun, load_run

    try:
        return load_run(path, left_out)
    except BadRun as error:
        raise UserError(str(error)) from None


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` to ``path`` as :func:`write_text` does."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, wholly or not at all; folders that are missing are made, a file is replaced.

    Raises :class:`UserError` when the path cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a folder, or a device such as /dev/stdout
            path.write_text(text, encoding="utf-8")
            return
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            # mkstemp makes private files; a result is as readable as any other new file.
            Path(temporary).chmod(0o666 & ~_umask())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def make_folder(folder: Path) -> None:
    """Make ``folder`` where it is missing: before minutes of work that is to be written there rather than after.

    Raises :class:`UserError` when it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
