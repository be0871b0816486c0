"""A program named ``ncu`` that prints what Nsight Compute 2025 does on its raw page, without a GPU.

What it prints and how it ends stands in a plan, a file of JSON beside it; it notes the arguments of each call.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

_PROGRAM = """#!{python}
import csv, json, os, sys, time
from pathlib import Path

here = Path(__file__).parent
plan = json.loads((here / "plan.json").read_text())
arguments = sys.argv[1:]
if "--version" in arguments:
    print("NVIDIA (R) Nsight Compute Command Line Profiler\\nVersion 2025.3.1.0 (build 36398880) (public-release)")
    sys.exit()
value = lambda name: arguments[arguments.index(name) + 1]
with open(here / "calls.jsonl", "a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
log = open(value("--log-file"), "w")
log.write("==PROF== Connected to process 7 (/usr/bin/python3)\\n")
metrics = value("--metrics").split(",")
for unknown in plan.get("unknown", []):
    if unknown in metrics:
        log.write("==ERROR== Failed to find metric regex:^" + unknown.replace(".", "\\\\.") + "$\\n")
        sys.exit(1)
request = json.loads(Path(arguments[-1]).read_text())
ends = plan.get("ends", {{}}).get(request["impl"], {{}})
print(ends.get("output", ""))
with open(request["answers"], "w") as answers:
    if "unavailable" in ends:
        answers.write(json.dumps({{"unavailable": ends["unavailable"]}}) + "\\n")
    else:
        answers.write(json.dumps({{"machine": {{"device": "H100"}}, "version": "1.0"}}) + "\\n")
        for number in range(len(request["problems"])):
            status, reason = ends.get("statuses", {{}}).get(str(number), ["ok", None])
            answers.write(json.dumps({{"problem": number, "status": status, "reason": reason}}) + "\\n")
        answers.write(json.dumps({{"resources": plan.get("resources")}}) + "\\n")
        if "log" not in ends and not ends.get("no_kernel"):
            units = {{"gpu__time_duration.sum": "nsecond"}}
            column = "thread Domain:Push/Pop_Range:PL_Type:PL_Value:CLR_Type:Color:Msg_Type:Msg"
            names = ["ID", "Process ID", *([column] if plan.get("ranges", True) else []), "Kernel Name"]
            names += ["Block Size", "Grid Size", *metrics]
            table = csv.writer(log, quoting=csv.QUOTE_ALL, lineterminator="\\n")
            table.writerow(names)
            table.writerow([units.get(name, "") for name in names])
            for number, problem in enumerate(request["problems"]):
                if str(number) in ends.get("statuses", {{}}):
                    continue
                for kernel, known in plan["kernels"]:
                    scale = problem["q_len"] / 256
                    cell = lambda name: known.get(name, 1 if "pct" in name else 1000 * scale)
                    text = lambda found: f"{{found:,.2f}}" if isinstance(found, (int, float)) else found
                    row = [len(kernel), 7]
                    if plan.get("ranges", True):
                        row.append(f'7  "<default domain>:attn-profile-{{number}}:none:none:none:none:none:none" ')
                    table.writerow([*row, kernel, "(128, 1, 1)", "(8, 4, 1)", *(text(cell(name)) for name in metrics)])
log.write(ends.get("log", ""))
log.flush()
time.sleep(ends.get("sleep", 0))
if "signal" in ends:
    os.kill(os.getpid(), ends["signal"])
sys.exit(ends.get("code", 0))
"""


class FakeNcu:
    """The program in ``folder``, which stands in for a toolkit."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        (self.bin / "ncu").write_text(_PROGRAM.format(python=sys.executable))
        (self.bin / "ncu").chmod(0o755)
        self.plan(kernels=[])
        monkeypatch.setenv("CUDA_HOME", str(folder))
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.device_count", lambda: 1)

    def plan(self, **plan: Any) -> None:
        """State what it prints: ``kernels`` are pairs of a name and its metrics; ``ends`` how it ends, by name."""
        (self.bin / "plan.json").write_text(json.dumps(plan))

    @property
    def calls(self) -> list[list[str]]:
        """The arguments of each call so far."""
        path = self.bin / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
