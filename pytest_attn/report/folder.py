"""The folder of a report: what may be replaced in it, and what a former report left that nobody needs.

A list of the files with their digests lies beside them. Only what stands in it unchanged is ever removed, and a folder
with a page that is not ours is refused: a user who names the wrong folder loses nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

LIST = ".attn-report.json"
_FIGURE = re.compile(r"figures/[a-z0-9][a-z0-9_-]*\.(svg|png)")
# Pages of ours say so in their head; those of before there was a list have this title.
_SIGNS = (b'<meta name="generator" content="pytest-attn">', b"<title>Attention on ")


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write ``files``, by their names relative to ``folder``, and remove figures that only a former report has.

    Raises :class:`OSError` with a sentence where the folder cannot be written or holds such files of someone else.
    """
    try:
        former = _former(folder)
        if former is None:
            _refuse_others(folder, files)
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        for name, digest in (former or {}).items():
            path = folder / name
            if name not in files and path.is_file() and not path.is_symlink() and _digest(path.read_bytes()) == digest:
                path.unlink()
        listed = {name: _digest(content) for name, content in sorted(files.items())}
        (folder / LIST).write_text(json.dumps(listed, indent=0) + "\n", encoding="utf-8")
    except OSError as error:
        # Ours carry no number: they are sentences already.
        message = f"cannot write the report to {folder}: {error.strerror or error}" if error.errno else str(error)
        raise OSError(message) from None


def _former(folder: Path) -> dict[str, str] | None:
    """Return the digests of the figures of a former report, ``None`` where no list of one can be read."""
    try:
        listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if not isinstance(listed, dict):
        return None
    # Whoever edited the list must not make us remove anything but a figure.
    return {str(name): str(digest) for name, digest in listed.items() if _FIGURE.fullmatch(str(name))}


def _refuse_others(folder: Path, files: Mapping[str, bytes]) -> None:
    page = folder / "index.html"
    if page.is_file():
        with page.open("rb") as file:
            head = file.read(4096)
        if any(sign in head for sign in _SIGNS):
            return
    for name in files:
        if (folder / name).exists() and not name.startswith("figures/"):
            raise OSError(f"{folder / name} was not written by a report and would be lost: choose another folder")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
