"""Writes the detection table, ``table.json`` and ``README.md``: ``python reports/detection/make.py [NAME...]``.

Planted faults and right implementations, each judged by our suite and by the rules that others use. On the CPU, a
process for every core; about half an hour of one core. With names, only these are judged; the others' rows are kept.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# Run as a script from anywhere; the packages lie in the checkout that holds this folder.
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import torch  # noqa: E402
from rivals import HALF_CASES, RIVALS, judge_by_rivals  # noqa: E402

from attn_impls import discover  # noqa: E402
from tests.tool.detection import EXAMPLES, first_failure  # noqa: E402
from tests.tool.faults import FAULTS, RIGHT  # noqa: E402

SEEDS = (0, 1, 2)
GIVEN = """\
What each is given:

- **ours**: the bodies of the tests in `tests/correctness` at profile `ci` ({n} examples of `test_forward`, {n} of
  `test_gradients`, {quarter} of each property), on cases drawn inside the claimed capabilities, with {seeds} seeds,
  and then the fixed cases, which are the same whatever the seed (`fixed` counts them). The
  column says which check failed first and after how many of its examples, seed by seed. Caught is what no seed missed.
- **flash-attention's rule**: {half} fixed cases in fp16 and bf16, an even choice of its own test's axes (see
  [rivals.py](rivals.py)): `max|x − ref| ≤ 2 max|pt − ref|` for the output and 3 times for gradients, where `ref` is
  PyTorch in fp32 rounded to the dtype and `pt` is PyTorch in the dtype itself. The column is the rule of one test on
  these cases, not that suite, which has other tests; the lengths (1024, 1023) and local with causal are left out.
- **allclose(1e-2)** and **assert_close**: the same cases and, as those rules are used there too, half of them in fp32;
  against the same `ref`; output, log-sum-exp and gradients. `assert_close` has its defaults for the dtype.
- The three on N(0, 1) inputs, seed 0, densely stored; no case outside the claimed capabilities. What raises fails.

`naive` is the yardstick of our budget, so it cannot fail the comparison with the oracle: it says nothing about
our false alarms there.

For faults, the rivals' columns name the first case that fails; for right implementations, how many fail."""


def main(names: list[str]) -> None:
    """Judge everything, or those of ``names``, and write both files."""
    right = [impl.name for impl in discover().values() if impl.why_unavailable("cpu") is None]
    todo = [*((name, "fault") for name in FAULTS), *((name, "right") for name in (RIGHT.name, *right))]
    # The problems are small: a thread each, and a process for every core. Right ones take longest, so they start first.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {key: pool.submit(_row, *key) for key in reversed(todo) if not names or key[0] in names}
        kept = {row["name"]: row for row in json.loads((HERE / "table.json").read_text())} if names else {}
        rows = [futures[key].result() if key in futures else kept[key[0]] for key in todo]
    (HERE / "table.json").write_text(json.dumps(rows, indent=1) + "\n")
    (HERE / "README.md").write_text(page(rows))


def _row(name: str, kind: str) -> dict[str, Any]:
    impl = FAULTS[name] if kind == "fault" else RIGHT if name == RIGHT.name else discover()[name]
    begin = time.perf_counter()
    ours = []
    for start in SEEDS:
        caught = first_failure(impl, start=start)
        ours.append(None if caught is None else {"check": caught.check, "examples": caught.examples})
    rivals = judge_by_rivals(impl, every_case=kind == "right")
    row = {"name": impl.name, "kind": kind, "summary": impl.summary, "ours": ours, "rivals": rivals}
    print(f"{impl.name}: {ours} ({time.perf_counter() - begin:.0f} s)", file=sys.stderr)
    return row


def page(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    faults = [row for row in rows if row["kind"] == "fault"]
    right = [row for row in rows if row["kind"] == "right"]
    names = [rival.name for rival in RIVALS]
    caught = [f"{sum(bool(row['rivals'][name]['failed']) for row in faults)} of {len(faults)}" for name in names]
    alarms = [f"{sum(bool(row['rivals'][name]['failed']) for row in right)} of {len(right)}" for name in names]
    ours = sum(all(row["ours"]) for row in faults)
    false = sum(any(row["ours"]) for row in right)
    lines = [
        "# What each rule catches",
        "",
        f"{len(faults)} faults, each planted in one right kernel (`tests/tool/faults/`), and {len(right)} right",
        f"implementations, on a CPU with torch {torch.__version__}. Made by `python reports/detection/make.py`, which",
        "writes [table.json](table.json) too.",
        "",
        "| | ours | " + " | ".join(names) + " |",
        "|---|---|" + "---|" * len(names),
        "| " + " | ".join(["faults caught", f"{ours} of {len(faults)}", *caught]) + " |",
        "| " + " | ".join(["false alarms", f"{false} of {len(right)}", *alarms]) + " |",
        "",
        *GIVEN.format(half=len(HALF_CASES), n=EXAMPLES, quarter=EXAMPLES // 4, seeds=len(SEEDS)).splitlines(),
        "",
        "## Faults",
        "",
        *_table(faults, names),
        "",
        "## Right implementations",
        "",
        *_table(right, names),
        "",
    ]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]], names: list[str]) -> list[str]:
    lines = ["| name | what | ours | " + " | ".join(names) + " |", "|---|---|---|" + "---|" * len(names)]
    for row in rows:
        cells = [row["name"], " ".join(row["summary"].split()), _ours(row["ours"], row["kind"])]
        for name in names:
            cells.append(_rival(row["rivals"][name], row["kind"]))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _ours(runs: list[dict[str, Any] | None], kind: str) -> str:
    if not any(runs):
        return "–" if kind == "right" else "**missed**"
    checks: dict[str, list[str]] = {}
    for found in runs:
        if found is not None:
            checks.setdefault(found["check"], []).append(str(found["examples"]))
    missed = [f"**missed** by {runs.count(None)} of {len(runs)}"] if None in runs else []
    return "; ".join([*(f"{check} {', '.join(counts)}" for check, counts in checks.items()), *missed])


def _rival(entry: dict[str, Any], kind: str) -> str:
    if not entry["cases"]:
        return "no case"
    if not entry["failed"]:
        return "–" if kind == "right" else "missed"
    return f"case {entry['failed'][0]}" if kind == "fault" else f"{len(entry['failed'])} of {entry['cases']}"


if __name__ == "__main__":
    main(sys.argv[1:])
