"""A small git repository to gate, and in it a stand-in for pytest that writes a run in a moment, without torch."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

# ``python -m pytest`` finds it first, since a side's checkout comes before the installed packages.
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path

from attn_impls.problem import FULL, Direction, Problem
from pytest_attn.perf.record import Record, Run, Time

options = dict(word.split("=", 1) for word in sys.argv if word.startswith("--") and "=" in word)
target, seed = Path(options["--benchmark-json"]), options["--attn-shuffle"]
side, (stage, pair) = target.stem, seed.rsplit("-", 1)
attempt = target.parent.name
cells = options.get("--attn-cells")
listed = None if cells is None else [line.split()[0] for line in Path(cells).read_text().splitlines()]
with open(os.environ["GATE_TRACE"], "a") as trace:
    untraced = options.get("--attn-untraced")
    print(json.dumps([side, seed, listed, os.getcwd(), sys.argv[-1], untraced]), file=trace)
at = f"{side}-{seed}-{attempt}"
plan = json.loads(os.environ.get("GATE_PLAN", "{}"))
match plan.get(at) or plan.get(f"{side}-{seed}"):
    case "killed":
        target.with_name(f"{target.name}.journal").write_text("{}")
        os.kill(os.getpid(), signal.SIGKILL)
    case "truncated":
        target.write_text('{"benchmarks": [')
        sys.exit(0)
    case "usage":
        sys.exit("ERROR: no such option: --wrong")
    case "edit":
        Path("another.py").write_text("CALLS = 3")
    case "hang":
        Path(os.environ["GATE_TRACE"]).with_suffix(".pid").write_text(str(os.getpid()))
        time.sleep(600)

problem = Problem(1, 4, 4, 128, 128, 64, "bf16", FULL)
records = []
for impl, seconds in json.loads(Path("kernels.json").read_text()).items():
    if listed is None or impl in listed:
        seconds *= plan.get(f"{impl}-{side}-{stage.partition('-')[0]}", 1)
        records.append(Record(impl, problem, Direction.FWD, "ok", "wall/2", time_s=Time(*[seconds] * 3, 50)))
run = Run(tuple(records), "smoke", {"device": "a CPU", "device_type": "cpu"}, {"torch": "2.13.0"})
rows = [{"extra_info": {"attn": record.to_dict()}} for record in records]
target.write_text(json.dumps({"benchmarks": rows, "attn": run.header()}))
"""

SETTINGS = """
[tool.pytest-attn.gate]
pairs = 3

[tool.pytest-attn.gate.time]
min_pairs = 2
relative = "30%"
"""

KERNELS = {"one": 1e-3, "two": 2e-3}


def git(folder: Path, *arguments: str) -> str:
    """Run git there, as no one in particular, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    settings = ("user.name=n", "user.email=e", "commit.gpgsign=false")
    who = [word for setting in settings for word in ("-c", setting)]
    command = ["git", *who, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def commit(folder: Path, files: dict[str, str]) -> str:
    """Write ``files``, commit everything and return the commit's id."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "files")
    return git(folder, "rev-parse", "HEAD")


def repository(folder: Path, files: dict[str, str]) -> Path:
    """Make a repository whose branch ``main`` holds ``files`` in one commit."""
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    commit(folder, {"pyproject.toml": SETTINGS, **files})
    return folder


def stand_in(folder: Path, kernels: dict[str, float] = KERNELS) -> Path:
    """Make a repository in which pytest is the stand-in, and ``kernels`` what it measures, in seconds by name."""
    return repository(folder, {"pytest.py": STAND_IN, "kernels.json": json.dumps(kernels)})


def traced(path: Path) -> list[list[Any]]:
    """Return, of each process: side, seed, implementations listed, folder, last argument, ``--attn-untraced``."""
    return [json.loads(line) for line in path.read_text().splitlines()]
