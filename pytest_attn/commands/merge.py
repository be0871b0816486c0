"""``attn merge PART.json ... -o OUT.json``: one run out of the parts of a grid that was split with ``--attn-shard``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_attn.commands.errors import UserError
from pytest_attn.commands.files import read_run, write_json
from pytest_attn.text import count

if TYPE_CHECKING:
    from pytest_attn.perf.record import Run

HELP = "join the parts of a run that --attn-shard split; exit 2 when they do not belong together"

_MAY_DIFFER = ("machine", "contract", "grid")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``attn merge`` takes."""
    parser.add_argument("parts", type=Path, nargs="+", metavar="PART.json", help="from pytest -m perf --benchmark-json")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.json", help="the run to write")
    parser.add_argument(
        "--allow", default="", metavar=",".join(_MAY_DIFFER), help="what may differ between parts, comma-separated"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the joined run and print its path and size; shards that are missing are a warning on standard error.

    Raises :class:`UserError` for parts that are unusable, do not belong together or hold a cell twice, and for an
    output that cannot be written.
    """
    allowed = _allowed(arguments.allow)
    parts = [read_run(path) for path in arguments.parts]
    _refuse_unlike(parts, allowed)
    _refuse_common_cells(parts)
    shard, missing = _shard([part.shard for part in parts])
    merged = _joined([json.loads(path.read_text(encoding="utf-8")) for path in arguments.parts], shard)
    write_json(arguments.output, merged)
    if missing:
        _warn(f"without shard {', '.join(missing)}: the grid is not complete")
    records = sum(len(part.records) for part in parts)
    print(f"{arguments.output}: {count(records, 'record')} of {count(len(parts), 'part')}")
    return 0


def _allowed(text: str) -> set[str]:
    names = {name.strip() for name in text.split(",")} if text else set()
    if unknown := sorted(names - set(_MAY_DIFFER)):
        raise UserError(f"--allow: {unknown[0]!r} is not one of {', '.join(_MAY_DIFFER)}")
    return names


def _refuse_unlike(parts: Sequence[Run], allowed: set[str]) -> None:
    from pytest_attn.gate.comparable import Terms, changes, differences, sentence

    for part in parts:
        if not part.records:
            raise UserError(f"{part.source} holds no records")
    first = parts[0]
    old, *others = (Terms(p.machine, {record.contract for record in p.records}, p.grid) for p in parts)
    for part, new in zip(parts[1:], others, strict=True):
        if old.machine.get("device_type") != new.machine.get("device_type"):
            raise UserError(f"{first.source} and {part.source} are of a CPU and of a GPU; no option joins them")
        found = differences(old, new)
        if refused := {name: change for name, change in found.items() if name not in allowed}:
            raise UserError(
                f"{first.source} and {part.source} differ in {sentence(refused)}; "
                f"--allow {','.join(refused)} joins them all the same"
            )
        if environment := changes(first.environment, part.environment):
            _warn(f"{part.source} has another environment than {first.source}: {'; '.join(environment)}")


def _refuse_common_cells(parts: Sequence[Run]) -> None:
    seen: dict[tuple[str, str, str], str] = {}
    for part in parts:
        keys = {record.key for record in part.records}
        if common := keys & seen.keys():
            cell = min(common)
            raise UserError(
                f"{seen[cell]} and {part.source} both hold {' '.join(cell)} ({count(len(common), 'cell')} in common)"
            )
        seen |= dict.fromkeys(keys, part.source)


def _shard(shards: Sequence[str | None]) -> tuple[str | None, list[str]]:
    """Return the shard of the whole, ``i+j/n`` where some are missing and ``None`` where none is; and the missing."""
    split = [shard for shard in shards if shard is not None]
    if not split:
        return None, []
    try:
        pairs = [(set(map(int, taken.split("+"))), int(of)) for taken, of in (shard.split("/") for shard in split)]
    except ValueError:
        raise UserError(f"a part says that it is shard {' or '.join(split)}, which is not i/n") from None
    if len({of for _, of in pairs}) > 1:
        raise UserError(f"the parts are shards of different splits: {', '.join(sorted(set(split)))}")
    of = pairs[0][1]
    taken = set[int]().union(*(each for each, _ in pairs))
    missing = [f"{i}/{of}" for i in range(1, of + 1) if i not in taken]
    return (f"{'+'.join(map(str, sorted(taken)))}/{of}" if missing else None), missing


def _joined(parts: Sequence[dict[str, Any]], shard: str | None) -> dict[str, Any]:
    """Return the JSON of all parts: rows one after the other, what describes the run stated for all of it."""
    headers = [part["attn"] for part in parts]
    attn = {
        **headers[0],
        "grid": _stated(header["grid"] for header in headers),
        "shard": shard,
        "machine": _stated_by_key([header["machine"] for header in headers]),
        "environment": _stated_by_key([header["environment"] for header in headers]),
        "implementations": _implementations([header.get("implementations", {}) for header in headers]),
        "not_timed": [record for header in headers for record in header.get("not_timed", [])],
    }
    merged = {**parts[0], "benchmarks": [row for part in parts for row in part["benchmarks"]], "attn": attn}
    if isinstance(parts[0].get("machine_info"), dict):
        merged["machine_info"] = {**parts[0]["machine_info"], "attn": attn["machine"]}
    return merged


def _implementations(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the implementations of all parts; one that ran in a part is not missing in the whole."""
    found = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        known = [part[name] for part in parts if name in part]
        known = [each for each in known if each["missing"] is None] or known[:1]
        found[name] = {**known[0], "version": _stated(each["version"] for each in known)}
        if told := [each["resources"] for each in known if "resources" in each]:
            found[name]["resources"] = _resources(told)
    return found


def _resources(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the compiled kernels of an implementation take, by the parts that could tell."""
    told = [part for part in parts if part.get("kernels") is not None] or parts[:1]
    if all(part.get("kernels") == told[0].get("kernels") for part in told):
        return told[0]
    return {"missing": "the parts have different builds", "kernels": None}


def _stated_by_key(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        key: _stated(part.get(key) for part in parts) for key in dict.fromkeys(key for part in parts for key in part)
    }


def _stated(values: Iterable[Any]) -> Any:
    """Return the one value that all parts have, or the different ones as text, joined by ``+`` as grids are."""
    different = list({json.dumps(value): value for value in values}.values())
    return different[0] if len(different) == 1 else "+".join(map(str, different))


def _warn(text: str) -> None:
    print(f"attn merge: warning: {text}", file=sys.stderr)
