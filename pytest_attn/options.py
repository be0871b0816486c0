"""The command line options, and what they allow. Torch is imported only where a value needs it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from attn_impls.problem import Direction
from pytest_attn.perf.contract import TIMERS

NO_WORKERS = (
    "-m perf with -n would time workers that disturb each other; leave -n out, and for several GPUs start one "
    "run for each with --attn-shard i/n"
)


def add_options(parser: pytest.Parser) -> None:
    """Declare the options of the group ``attn``."""
    group = parser.getgroup("attn", "attention implementations")
    group.addoption(
        "--attn-impl",
        action="append",
        metavar="NAME|module:function",
        help="implementation to judge, by name or as a function of (q, k, v, problem); repeatable; default: all found",
    )
    group.addoption(
        "--attn-device",
        default="auto",
        metavar="auto|cpu|cuda[:i]",
        help="where to run; auto is CUDA where there is one (default: %(default)s)",
    )
    group.addoption(
        "--attn-grid",
        metavar="NAME|FILE.toml",
        help="problems to time, repeatable; `attn list --grids` names them (default: smoke on a CPU, lab5 on CUDA)",
        action="append",
    )
    group.addoption(
        "--attn-direction",
        default="fwd,bwd,fwd_bwd",
        metavar="fwd,bwd,fwd_bwd",
        help="directions to time, comma-separated (default: %(default)s)",
    )
    group.addoption(
        "--attn-timer",
        default="auto",
        metavar="|".join(TIMERS),
        help="auto is CUDA events on CUDA and the wall clock on a CPU; kineto is CUPTI's kernel durations "
        "(default: %(default)s)",
    )
    group.addoption(
        "--attn-energy",
        action="store_true",
        help="take the energy of a call as well, from the device's counter (0.6 s more for each cell)",
    )
    group.addoption(
        "--attn-brief",
        action="store_true",
        help="time each cell for at most 0.1 s, which the contract's name then says: for the many processes of a gate",
    )
    group.addoption(
        "--attn-shard",
        metavar="i/n",
        help="time only every n-th problem of the grid, from the i-th on: one of n runs that `attn merge` joins",
    )
    group.addoption(
        "--attn-cells",
        metavar="FILE",
        help="time only the cells that this file lists, one a line: implementation, problem id, direction",
    )
    group.addoption(
        "--attn-shuffle",
        metavar="SEED",
        help="time the problems in an order that this text shuffles; the same text gives the same order",
    )
    group.addoption(
        "--attn-untraced",
        metavar="RUN.json",
        help="start no profiler: leave the kernels' names and the timer's calibration to this run of the same machine",
    )
    group.addoption(
        "--attn-gate",
        metavar="BASE.json",
        help="compare with this run when done; a cell that is slower fails the run",
    )
    group.addoption(
        "--attn-resume",
        action="store_true",
        help="continue the unfinished run that wrote this --benchmark-json or its journal: what it has is kept",
    )
    group.addoption(
        "--attn-isolate",
        action="store_true",
        help="run each implementation in a process of its own: a crash fails its test and no other",
    )
    group.addoption(
        "--attn-timeout",
        metavar="SECONDS",
        help="end an implementation that takes longer for one case or one measurement, building and compiling "
        "included; implies --attn-isolate",
    )
    group.addoption(
        "--attn-repro",
        metavar="JSON",
        help="repeat one failed correctness case, from the command that the failure printed",
    )
    group.addoption(
        "--attn-skips",
        metavar="FILE",
        help="skip the tests that this file lists by prefixes of their ids, one a line, with a reason after '  # '",
    )
    group.addoption(
        "--attn-xfails",
        metavar="FILE",
        help="expect the tests that this file lists likewise to fail; one that passes fails the run",
    )


def check(config: pytest.Config) -> None:
    """Raise ``pytest.UsageError`` for a value that cannot mean anything, before anything runs."""
    directions(config)
    timer = config.getoption("attn_timer")
    if timer not in TIMERS:
        raise pytest.UsageError(f"--attn-timer {timer!r} is not one of {', '.join(TIMERS)}")
    repro(config)
    shard(config)
    timeout(config)
    _check_perf_run(config)


def _check_perf_run(config: pytest.Config) -> None:
    """Refuse, before anything is measured, a timed run whose results could not be kept."""
    if json_path(config) is None and config.getoption("attn_resume"):
        raise pytest.UsageError("--attn-resume continues a file: give the --benchmark-json=FILE of the run to continue")
    marks = config.getoption("markexpr", "")
    if config.getoption("numprocesses", None) and "perf" in marks and "not perf" not in marks and _is_ours(config):
        raise pytest.UsageError(NO_WORKERS)


def directions(config: pytest.Config) -> list[Direction]:
    """Return the directions asked for, in the order of :class:`~attn_impls.problem.Direction`."""
    text: str = config.getoption("attn_direction")
    wanted = [part.strip() for part in text.split(",")]
    allowed = [direction.value for direction in Direction]
    for part in wanted:
        if part not in allowed:
            raise pytest.UsageError(f"--attn-direction {text!r}: {part!r} is not one of {', '.join(allowed)}")
    return [direction for direction in Direction if direction.value in wanted]


def json_path(config: pytest.Config) -> Path | None:
    """Return the file of ``--benchmark-json``, ``None`` without it."""
    path: Any = config.getoption("benchmark_json", None)
    if hasattr(path, "write"):  # pytest-benchmark < 5.3 opens the file itself while it reads the options
        path = path.name
    return Path(path) if path else None


def shard(config: pytest.Config) -> tuple[int, int] | None:
    """Return ``(i, n)`` of ``--attn-shard``, ``1 <= i <= n``; ``None`` without it."""
    text: str | None = config.getoption("attn_shard")
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise pytest.UsageError(f"--attn-shard {text!r} is not i/n with i from 1 to n, such as 2/4")
    return int(match[1]), int(match[2])


def timeout(config: pytest.Config) -> float | None:
    """Return the seconds of ``--attn-timeout``, ``None`` without it."""
    text: str | None = config.getoption("attn_timeout")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise pytest.UsageError(f"--attn-timeout {text!r} is not a positive number of seconds")
    return seconds


def isolate(config: pytest.Config) -> bool:
    """Tell whether implementations run in processes of their own."""
    return bool(config.getoption("attn_isolate")) or timeout(config) is not None


def repro(config: pytest.Config) -> dict[str, Any] | None:
    """Return what ``--attn-repro`` holds, or ``None``.

    The keys are ``impl``, ``direction``, ``problem``, ``regime``, ``seed``, and ``property`` where that is what failed.
    """
    text: str | None = config.getoption("attn_repro")
    if text is None:
        return None
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise pytest.UsageError(f"--attn-repro is not JSON: {error}") from None
    wanted = {"impl", "direction", "problem", "regime", "seed"}
    if not isinstance(data, dict) or set(data) - {"property"} != wanted:
        raise pytest.UsageError(f"--attn-repro needs exactly the keys {', '.join(sorted(wanted))}")
    if data["direction"] not in ("fwd", "bwd"):
        raise pytest.UsageError(f"--attn-repro: direction {data['direction']!r} is not one of fwd, bwd")
    return data


def impl_names(config: pytest.Config) -> Sequence[str]:
    """Return the implementations asked for by name; empty means all."""
    case = repro(config)
    if case is not None:
        return [str(case["impl"])]
    return list(dict.fromkeys(config.getoption("attn_impl") or []))


def _is_ours(config: pytest.Config) -> bool:
    """Tell whether the command line names something of ours: other people's tests have a marker ``perf``, too."""
    return names_something(config) or any("pytest_attn" in argument for argument in config.args)


def names_something(config: pytest.Config) -> bool:
    """Tell whether an option names what only a session can check: a wrong name is refused before collection."""
    named = impl_names(config) or config.getoption("attn_grid") or config.getoption("attn_shard")
    named = named or config.getoption("attn_untraced") is not None
    return bool(named) or any(config.getoption(option) != "auto" for option in ("attn_device", "attn_timer"))
