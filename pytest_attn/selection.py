"""Which timed cells run, and in which order: ``--attn-cells`` and ``--attn-shuffle``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_attn.parametrize import cell
from pytest_attn.session import existing_session

Key = tuple[str, str, str]


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the listed cells only, and shuffle the problems.

    Raises ``pytest.UsageError`` for a list that cannot be read or names a cell that this run does not have.
    """
    listed: str | None = config.getoption("attn_cells")
    seed: str | None = config.getoption("attn_shuffle")
    if listed is not None:
        _keep(config, items, _read(Path(listed)), listed)
    if seed is not None:
        # A digest for each group and no shuffle of the list, so that a run with one more cell keeps the others' order.
        items.sort(key=lambda item: _place(seed, item))
    session = existing_session(config)
    if session is not None and (listed is not None or seed is not None):
        session.cells = [key for item in items if (key := _key(item)) is not None]


def _keep(config: pytest.Config, items: list[pytest.Item], wanted: Sequence[Key], name: str) -> None:
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        (kept if _key(item) in wanted else dropped).append(item)
    found = {_key(item) for item in kept}
    if missing := [key for key in wanted if key not in found]:
        raise pytest.UsageError(f"--attn-cells {name}: this run has no cell {' '.join(missing[0])}")
    items[:] = kept
    if dropped:
        config.hook.pytest_deselected(items=dropped)


def _read(path: Path) -> list[Key]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise pytest.UsageError(f"--attn-cells: cannot read {path}: {reason}") from None
    keys = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        # From the right: the name of an implementation may hold spaces.
        parts = line.strip().rsplit(maxsplit=2)
        if len(parts) != 3:
            raise pytest.UsageError(f"--attn-cells {path}, line {number}: not 'implementation problem direction'")
        keys.append((parts[0], parts[1], parts[2]))
    if not keys:
        raise pytest.UsageError(f"--attn-cells: {path} lists no cell")
    return keys


def _key(item: pytest.Item) -> Key | None:
    params = cell(item)
    return None if params is None else (params["attn_impl"], params["attn_problem"], params["attn_direction"])


def _place(seed: str, item: pytest.Item) -> bytes:
    """Return what sorts ``item``: one value for all cells that are measured together, and first for other tests."""
    key = _key(item)
    if key is None:
        return b""
    return hashlib.sha256("\0".join((seed, *key[1:])).encode()).digest()
