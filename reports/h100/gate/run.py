"""No-op gates, and one with 5 % more work in a kernel's launch: run.py OUT [--gates noop-1,planted,noop-2,noop-3].

Makes a small git repository in a temporary folder (padded.py, grid.toml, the test of tests/perf; two commits, the
second with the slowdown) and runs `attn gate noop` and `attn gate run` in it, as a user would. OUT/<gate>.json is
written when a gate has ended, or was broken off by --limit: then with the medians that were there. OUT/gates.txt has
the tables. A gate that the time left would not suffice for is not started; another call with --gates takes it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from pytest_attn.cli import main as attn
from pytest_attn.gate import worktree
from pytest_attn.perf.record import BadRun, load_run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
LIBRARY = ("sdpa-flash", "sdpa-cudnn", "sdpa-efficient")
PLANTED = "padded:attention"
INTERRUPTED = 130


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--gates", default="noop-1,planted,noop-2,noop-3")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--limit", type=float, default=530.0, help="seconds after which the gate in progress ends")
    parser.add_argument("--trace", default="first", choices=("first", "every"))
    parser.add_argument("--whole", action="store_true", help="leave out --attn-brief: 0.1 to 0.4 s a cell more")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--grid", type=Path, default=HERE / "grid.toml")
    parser.add_argument("--impl", action="append", help=f"instead of {', '.join(LIBRARY)}")
    parser.add_argument("--padding", type=int, default=1, help="heads that the planted slowdown computes in vain")
    return parser.parse_args()


def lay_out(folder: Path, asked: argparse.Namespace) -> None:
    """Write the small repository and its two commits, ``base`` and ``slower``."""
    (folder / "tests").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "perf" / "test_perf.py", folder / "tests")
    shutil.copy(asked.grid, folder / "grid.toml")
    settings = f"[tool.pytest-attn.gate.time]\nmin_pairs = {min(7, asked.pairs)}\n"
    (folder / "pyproject.toml").write_text(f"{settings}\n[tool.pytest.ini_options]\nmarkers = []\n")
    source = (HERE / "padded.py").read_text().replace("PADDING = 1\n", f"PADDING = {asked.padding}\n")
    planted = source.replace("COMPUTED = 0\n", "COMPUTED = PADDING\n")
    if planted == source:
        sys.exit("padded.py holds no line 'COMPUTED = 0'")
    (folder / "padded.py").write_text(source)
    if shutil.which("git") is None:
        (folder / "slower.py").write_text(planted)
        return
    who = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")

    def git(*words: str) -> None:
        subprocess.run(["git", *who, "-C", str(folder), *words], check=True, capture_output=True)

    git("init", "-q", "-b", "base")
    git("add", "-A")
    git("commit", "-q", "-m", "base")
    git("checkout", "-q", "-b", "slower")
    (folder / "padded.py").write_text(planted)
    git("commit", "-q", "-a", "-m", "slower")
    git("checkout", "-q", "base")


@contextlib.contextmanager
def without_git() -> Iterator[None]:
    """Stand in for git on a machine that has none: copies of the folder for worktrees."""

    @contextlib.contextmanager
    def copied(top: Path, commit: str, folder: Path) -> Iterator[Path]:
        shutil.copytree(top, folder, dirs_exist_ok=True)
        if commit == "slower":
            shutil.copy(top / "slower.py", folder / "padded.py")
        yield folder

    with contextlib.ExitStack() as stack:
        for name, stand_in in {
            "repository": lambda folder: worktree.Repository(folder, ""),
            "commit_of": lambda top, ref: ref,
            "working_tree": lambda top: "base",
            "worktree": copied,
        }.items():
            stack.callback(setattr, worktree, name, getattr(worktree, name))
            setattr(worktree, name, stand_in)
        yield


def probe(device: str) -> dict[str, float]:
    """Return what a process spends before it measures: seconds of the import, the context, the first profiler."""
    steps = """
import time; marks = [time.perf_counter()]
import torch; marks.append(time.perf_counter())
torch.zeros(1, device="cuda"); torch.cuda.synchronize(); marks.append(time.perf_counter())
from torch.profiler import ProfilerActivity, profile
for _ in range(2):
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True):
        torch.zeros(1, device="cuda"); torch.cuda.synchronize()
    marks.append(time.perf_counter())
print(*(after - before for before, after in zip(marks, marks[1:])))
"""
    if device == "cpu":
        return {}
    done = subprocess.run([sys.executable, "-c", steps], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"CUDA cannot be used: {done.stderr[-500:]}")
    names = ("import_torch_s", "context_s", "first_profiler_s", "second_profiler_s")
    return {name: round(float(seconds), 3) for name, seconds in zip(names, done.stdout.split(), strict=True)}


def medians(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Return the medians of every process in seconds: by ``stage side``, then by cell, in the order of the pairs."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*/pair-*/*/*.json")):
        with contextlib.suppress(BadRun):
            for record in load_run(path).records:
                if record.time_s is not None:
                    stage = path.relative_to(folder).parts[0].partition("-")[0]
                    found[f"{stage} {path.stem}"][" ".join(record.key)].append(record.time_s.median)
    return found


def result(name: str, folder: Path, code: int | None, seconds: float) -> dict[str, Any]:
    """Return what a gate found; exact metrics that are the same are only counted."""
    data: dict[str, Any] = {"gate": name, "exit_code": code, "wall_s": round(seconds, 1)}
    first = next(iter(sorted(folder.glob("first/pair-*/*/base.json"))), None)
    if first is not None:
        with contextlib.suppress(BadRun):
            run = load_run(first)
            data |= {"machine": run.machine, "environment": run.environment, "instruments": run.instruments}
    if (folder / "verdicts.json").exists():
        document = json.loads((folder / "verdicts.json").read_text())
        times = [verdict for verdict in document["verdicts"] if verdict["metric"] == "time"]
        exact = [verdict for verdict in document["verdicts"] if verdict["metric"] != "time"]
        data |= {"pairs": document["pairs"], "thresholds": document["thresholds"], "verdicts": times}
        data["exact"] = Counter(verdict["verdict"] for verdict in exact)
        data["exact_not_same"] = [verdict for verdict in exact if verdict["verdict"] != "same"]
    if (folder / "noise.json").exists():
        data["noise"] = json.loads((folder / "noise.json").read_text())["cells"]
    return data | {"medians_s": medians(folder)}


def gate(name: str, repository: Path, folder: Path, asked: argparse.Namespace, log: Path) -> int | None:
    """Run one gate in the repository; ``None`` where the time limit broke it off."""
    command = ["noop"] if name.startswith("noop") else ["run", "--base", "base", "--head", "slower"]
    common = ["--pairs", str(asked.pairs), "--out", str(folder), "--trace", asked.trace, "-v"]
    impls = [word for impl in (*(asked.impl or LIBRARY), PLANTED) for word in ("--attn-impl", impl)]
    # Other plugins of the environment would be imported by each of the processes.
    measured = ["-p", "benchmark", "tests", *impls, "--attn-grid", "grid.toml", "--attn-direction", "fwd"]
    measured += [] if asked.whole else ["--attn-brief"]
    os.chdir(repository)
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        print(f"\n{name}: attn gate", *command, *common, "--", *measured, flush=True)
        code = attn(["gate", *command, *common, "--", *measured, "--attn-device", asked.device])
    return None if code == INTERRUPTED else code


def main() -> None:
    began = time.monotonic()
    asked = arguments()
    out = asked.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ.pop("PYTEST_PLUGINS", None)
    start = probe(asked.device)
    print(f"a process spends {start}" if start else "no CUDA", flush=True)

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        repository = Path(name) / "repository"
        lay_out(repository, asked)
        if shutil.which("git") is None:
            print("no git here: folders are copied")
            stack.enter_context(without_git())
        took: list[float] = []
        for each in asked.gates.split(","):
            left = asked.limit - (time.monotonic() - began)
            needed = min(took, default=1.0)
            if left < needed:
                print(f"{each}: not started, {left:.0f} s are left and a gate takes {needed:.0f} s", flush=True)
                continue
            since = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, max(1.0, left))
            code = gate(each, repository, Path(name) / each, asked, out / "gates.txt")
            signal.setitimer(signal.ITIMER_REAL, 0)
            seconds = time.monotonic() - since
            took += [] if code is None else [seconds]
            found = result(each, Path(name) / each, code, seconds) | {"start": start}
            (out / f"{each}.json").write_text(json.dumps(found, indent=1) + "\n")
            print(summary(each, found), flush=True)
            if "verdicts" not in found:
                print(*(out / "gates.txt").read_text().splitlines()[-3:], sep="\n", flush=True)
                keep_logs(Path(name) / each, out / "gates.txt")


def summary(name: str, found: dict[str, Any]) -> str:
    # A cell outside of the implementation's capabilities is no cell.
    tally = Counter(verdict["verdict"] for verdict in found.get("verdicts", ()) if verdict["code"][:5] != "both-")
    moved = [
        f"{verdict['impl']} {verdict['problem_id']} {100 * (verdict['ratio'] - 1):+.2f} % {verdict['code']}"
        for verdict in found.get("verdicts", ())
        if verdict["verdict"] in ("slower", "faster") and verdict["ratio"]
    ]
    moved += [
        f"{verdict['impl']} {verdict['problem_id']} {verdict['metric']}: {verdict['verdict']}, {verdict['code']}"
        for verdict in found.get("exact_not_same", ())
    ]
    worst = max((cell["median"] for cell in found.get("noise", ())), default=None)
    noise = "" if worst is None else f", worst cell off by {100 * worst:.2f} %"
    head = f"{name}: exit code {found['exit_code']} after {found['wall_s']} s, {dict(tally)}{noise}"
    return "\n".join([head, *(f"  {line}" for line in moved)])


def keep_logs(folder: Path, log: Path) -> None:
    """Add the end of the last process's log: the temporary folder does not outlive this."""
    logs = sorted(folder.glob("*/pair-*/*/*.log"), key=lambda path: path.stat().st_mtime)
    with log.open("a") as file:
        for path in logs[-1:]:
            print(f"\n{path.name}:", *path.read_text(errors="replace").splitlines()[-40:], sep="\n", file=file)


if __name__ == "__main__":
    main()
