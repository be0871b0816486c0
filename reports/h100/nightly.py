"""Runs the suite at profile ``nightly`` over implementations and seeds, a process each, many side by side on one GPU.

``python reports/h100/nightly.py FOLDER [IMPLEMENTATION...] [--seeds 1 2 3] [--at-once N]`` writes a log for each to
FOLDER, leaves out what has come to its end there, and prints the table of all logs; ``--table`` prints that alone.
Where a new shape costs seconds of compilation, a run is divided among seven processes, each with a log.
What is interrupted, takes an hour, or ends in another way than by tests that passed or failed, has a log that ends in
``.part``.
A process takes about 5 minutes forward, 9 with gradients and 16 for cuDNN, where as many run as there are cores, and up
to 5 GB of the GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BOTH = (
    *("tiled-hopper", "tiled-overlap", "tiled-ws", "tiled-async", "triton", "tiled-torch", "naive"),
    *("sdpa-cudnn", "sdpa-flash", "sdpa-efficient", "sdpa-math", "trimmed_flash:at_64_and_128", "flash-attn-4", "flex"),
)
FORWARD = (
    "tiled-wgmma",
    *(f"tiled-{name}" for name in ("mma", "global", "smem", "pad", "coalesced", "unroll", "regs")),
)
# Those that compile each shape, and which tests, by -k, each process of theirs has: the longest come first.
DIVIDED = ("flex", "flash-attn-4")
MOST_PARTS = (
    "test_gradients",
    "test_fixed_cases and bwd",
    "test_forward",
    "test_fixed_cases and fwd",
    "permuted_keys or blind_to_the_suffix or independent_batches or independent_heads",
    "constant_values or shifted_logits or repeated_heads or linear_in_values",
)
PARTS = (*MOST_PARTS, f"not ({' or '.join(f'({tests})' for tests in MOST_PARTS)})")
SUMMARY = re.compile(r"^(?:=+ )?((?:\d+ \w+(?:, )?)+) in [\d.]+s", re.MULTILINE)
WORST = re.compile(
    r"worst error over budget by rule.*\n.*\n(?P<name>.+?)  +(?P<ratios>(?:[\d.einf+-]+ +)+)(?P<cases>\d+)  (?P<at>.+)"
)
PASSED_OR_FAILED = (0, 1)  # pytest's exit status where it came to its end
MOST_SECONDS = 3600
COMMAND = ("-m", "pytest", "tests/correctness", "-m", "correctness", "--hypothesis-profile", "nightly")


class Run(NamedTuple):
    """One process: the tests ``part`` of :data:`PARTS`, or all of them, over one implementation."""

    name: str
    seed: int
    part: int | None = None

    def log(self, folder: Path) -> Path:
        """Return where its output lies."""
        part = "" if self.part is None else f".{self.part}"
        return folder / f"{self.name.replace(':', '.')}-{self.seed}{part}.log"


def runs(names: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Return the processes of each name and seed, those that take longest first."""
    both = [(name, seed) for name in names for seed in seeds]
    divided = [Run(*each, part) for part in range(len(PARTS)) for each in both if each[0] in DIVIDED]
    return divided + [Run(*each) for each in both if each[0] not in DIVIDED]


def run(folder: Path, job: Run) -> None:
    """Run the suite over one implementation, unless it was."""
    log = job.log(folder)
    if log.exists():
        return
    plugin = () if "pytest_attn.plugin" in _installed_plugins() else ("-p", "pytest_attn.plugin")
    arguments = (*plugin, "--attn-device", "cuda", "--attn-impl", job.name, f"--hypothesis-seed={job.seed}", "-q")
    tests = () if job.part is None else ("-k", PARTS[job.part])
    path = os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])
    part = log.with_suffix(".part")
    with part.open("w") as output, contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [sys.executable, *COMMAND, *arguments, *tests, "-p", "no:cacheprovider"],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            check=False,
            timeout=MOST_SECONDS,
        )
        if done.returncode in PASSED_OR_FAILED:
            part.rename(log)


def _installed_plugins() -> set[str]:
    from importlib.metadata import entry_points

    return {point.value for point in entry_points(group="pytest11")}


def table(folder: Path) -> str:
    """Return a line for each name and seed: what pytest said; and then the worst errors over budget.

    Of what is divided, a name and seed of which a log is missing has no line.
    """
    logs: dict[str, list[str]] = {}
    for name, seed in sorted({_name_and_seed(log) for log in folder.glob("*-[0-9]*.log")}):
        parts = range(len(PARTS)) if name in DIVIDED else [None]
        texts = [log.read_text() for part in parts if (log := Run(name, int(seed), part).log(folder)).exists()]
        if len(texts) == len(parts):
            logs[f"{seed}  {name}"] = texts
    rules = "# worst error over budget by rule (element, rms, row, gain, scale), cases, and where"
    worst = [f"{run.partition('  ')[0]}  {line}" for run, texts in logs.items() if (line := _worst(texts))]
    return "\n".join(
        ["# seed  what pytest said", *(f"{run}: {_said(texts)}" for run, texts in logs.items()), rules, *worst]
    )


def _name_and_seed(log: Path) -> tuple[str, str]:
    name, _, seed_and_part = log.stem.rpartition("-")
    return name, seed_and_part.partition(".")[0]


def _said(texts: list[str]) -> str:
    counts: Counter[str] = Counter()
    for text in texts:
        for what in SUMMARY.findall(text)[-1:]:
            counts += Counter({word.rstrip("s"): int(n) for n, word in re.findall(r"(\d+) (\w+)", what)})
    return ", ".join(f"{counts[word]} {word}" for word in ("failed", "passed", "skipped", "error") if counts[word])


def _worst(texts: list[str]) -> str | None:
    """Return the accuracy table's row over all logs: of each rule the greatest, and where the greatest of all is."""
    found = [row for text in texts if (row := WORST.search(text))]
    if not found:
        return None
    ratios = [[float(x) for x in row["ratios"].split()] for row in found]
    greatest = max(range(len(found)), key=lambda i: max(ratios[i]))
    columns = "  ".join(f"{max(column):.2f}" for column in zip(*ratios, strict=True))
    return f"{found[0]['name']}  {columns}  {sum(int(row['cases']) for row in found)}  {found[greatest]['at']}"


def main() -> None:
    """Run what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="IMPLEMENTATION")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--at-once", type=int, default=os.cpu_count())
    parser.add_argument("--table", action="store_true", help="run nothing")
    asked = parser.parse_intermixed_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    if not asked.table:
        jobs = runs(asked.names or (*BOTH, *FORWARD), asked.seeds)
        with ThreadPoolExecutor(asked.at_once) as pool:
            for job in [pool.submit(run, asked.folder, job) for job in jobs]:
                job.result()
    print(table(asked.folder))


if __name__ == "__main__":
    main()
