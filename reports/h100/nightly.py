"""Runs the suite at profile ``nightly`` over implementations and seeds, a process each, many side by side on one GPU.

``python reports/h100/nightly.py FOLDER [IMPLEMENTATION...] [--seeds 1 2 3] [--at-once N]`` writes a log for each to
FOLDER, leaves out what has come to its end there, and prints the table of all logs; ``--table`` prints that alone.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
# Processes among which the tests of one run are divided, where a new shape costs seconds of compilation.
DIVIDED = {"flex": 5, "flash-attn-4": 4}
SUMMARY = re.compile(r"^(?:=+ )?((?:\d+ \w+(?:, )?)+) in [\d.]+s", re.MULTILINE)
PASSED_OR_FAILED = (0, 1)  # pytest's exit status where it came to its end
MOST_SECONDS = 3600
COMMAND = ("-m", "pytest", "tests/correctness", "-m", "correctness", "--hypothesis-profile", "nightly")


def log_of(folder: Path, name: str, seed: int) -> Path:
    """Return where the output of one run lies."""
    return folder / f"{name.replace(':', '.')}-{seed}.log"


def run(folder: Path, name: str, seed: int) -> None:
    """Run the suite over one implementation, unless it was."""
    log = log_of(folder, name, seed)
    if log.exists():
        return
    plugin = () if "pytest_attn.plugin" in _installed_plugins() else ("-p", "pytest_attn.plugin")
    arguments = (*plugin, "--attn-device", "cuda", "--attn-impl", name, f"--hypothesis-seed={seed}", "-q")
    divided = ("-n", str(DIVIDED[name]), "--maxschedchunk", "1") if name in DIVIDED else ()
    path = os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])
    part = log.with_suffix(".part")
    with part.open("w") as output, contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [sys.executable, *COMMAND, *arguments, *divided, "-p", "no:cacheprovider"],
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
    """Return a line for each log: seed, name, what pytest said; and then the worst errors over their budgets."""
    said, worst = [], []
    for log in sorted(folder.glob("*-[0-9]*.log")):
        name, seed = log.stem.rsplit("-", 1)
        text = log.read_text()
        said += [f"{seed}  {name}: {what}" for what in SUMMARY.findall(text)[-1:]]
        lines = text.splitlines()
        heads = [i for i, line in enumerate(lines) if "worst error over budget by rule" in line]
        worst += [f"{seed}  {lines[i + 2]}" for i in heads if i + 2 < len(lines)]
    rules = "# worst error over budget by rule (element, rms, row, gain, scale), cases, and where"
    return "\n".join(["# seed  what pytest said", *said, rules, *worst])


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
        jobs = [(name, seed) for seed in asked.seeds for name in asked.names or (*BOTH, *FORWARD)]
        with ThreadPoolExecutor(asked.at_once) as pool:
            for job in [pool.submit(run, asked.folder, *job) for job in jobs]:
                job.result()
    print(table(asked.folder))


if __name__ == "__main__":
    main()
