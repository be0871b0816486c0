"""The command line options, and what they allow. Torch is imported only where a value needs it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from attn_impls.problem import Direction
from pytest_attn.perf.contract import TIMERS


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
        help="timer: CUDA events or wall clock; auto fits the device (default: %(default)s)",
    )
    group.addoption(
        "--attn-repro",
        metavar="JSON",
        help="repeat one failed correctness case, from the command that the failure printed",
    )


def check(config: pytest.Config) -> None:
    """Raise ``pytest.UsageError`` for a value that cannot mean anything, before anything runs."""
    directions(config)
    timer = config.getoption("attn_timer")
    if timer not in TIMERS:
        raise pytest.UsageError(f"--attn-timer {timer!r} is not one of {', '.join(TIMERS)}")
    repro(config)
    _check_perf_run(config)


def _check_perf_run(config: pytest.Config) -> None:
    """Refuse, before anything is measured, a timed run whose results could not be kept."""
    path = config.getoption("benchmark_json", None)
    # pytest-benchmark < 5.3 opens the file itself while it reads the options, and says so when it cannot.
    if path and not hasattr(path, "write") and not Path(path).absolute().parent.is_dir():
        raise pytest.UsageError(f"--benchmark-json {path}: there is no folder {Path(path).parent}")
    marks = config.getoption("markexpr", "")
    if config.getoption("numprocesses", None) and "perf" in marks and "not perf" not in marks:
        raise pytest.UsageError("-m perf with -n would time workers that disturb each other; leave -n out")


def directions(config: pytest.Config) -> list[Direction]:
    """Return the directions asked for, in the order of :class:`~attn_impls.problem.Direction`."""
    text: str = config.getoption("attn_direction")
    wanted = [part.strip() for part in text.split(",")]
    allowed = [direction.value for direction in Direction]
    for part in wanted:
        if part not in allowed:
            raise pytest.UsageError(f"--attn-direction {text!r}: {part!r} is not one of {', '.join(allowed)}")
    return [direction for direction in Direction if direction.value in wanted]


def repro(config: pytest.Config) -> dict[str, Any] | None:
    """Return what ``--attn-repro`` holds: ``impl``, ``direction``, ``problem``, ``regime``, ``seed``; or ``None``."""
    text: str | None = config.getoption("attn_repro")
    if text is None:
        return None
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise pytest.UsageError(f"--attn-repro is not JSON: {error}") from None
    wanted = {"impl", "direction", "problem", "regime", "seed"}
    if not isinstance(data, dict) or set(data) != wanted:
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


def names_something(config: pytest.Config) -> bool:
    """Tell whether an option names what only a session can check: a wrong name is refused before collection."""
    named = impl_names(config) or config.getoption("attn_grid")
    return bool(named) or any(config.getoption(option) != "auto" for option in ("attn_device", "attn_timer"))
