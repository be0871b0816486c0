"""``attn lab5``: the course script's benchmark, its options, its JSON, its sweep."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_attn.commands.arguments import check_usable, device_of
from pytest_attn.commands.errors import UserError
from pytest_attn.commands.files import write_json
from pytest_attn.commands.lab5_point import DTYPE, Measured, Point, measure_point, why_not
from pytest_attn.commands.lab5_sweep import AXES, plan, sweep
from pytest_attn.probe import why_missing

if TYPE_CHECKING:
    import torch

    from attn_impls import Implementation, Registry

HELP = "the course script's benchmark: one point, or its whole sweep with --sweep"

_DEFAULTS: dict[str, int | str] = {
    "batch_size": 32,
    "seq_len": 1024,
    "num_heads": 32,
    "emb_dim": 2048,
    "impl": "Flash2",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``attn lab5`` takes; sizes in both spellings, as the script and as other commands write them."""
    for name in ("batch_size", "seq_len", "num_heads", "emb_dim"):
        spellings = (f"--{name}", f"--{name.replace('_', '-')}")
        told = f"default: {_DEFAULTS[name]}; with --sweep: {' '.join(map(str, AXES[name]))}"
        parser.add_argument(*spellings, dest=name, type=_positive, nargs="+", metavar="N", help=told)
    parser.add_argument(
        "--impl",
        nargs="+",
        metavar="Flash2|Pytorch|NAME",
        help="Flash2 (default), Pytorch, or any name or module:function that pytest --attn-impl takes",
    )
    parser.add_argument("--causal", action="store_true", help="the causal mask; with --sweep: only the causal points")
    parser.add_argument("--repeats", type=_positive, default=30, metavar="N", help="timed rounds (default: 30)")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda[:i]", help="default: auto")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: benchmark_result.json")
    parser.add_argument("--sweep", action="store_true", help="measure all combinations, one JSON each")
    parser.add_argument(
        "--output-dir", "--output_dir", dest="output_dir", type=Path, metavar="DIR", help="of --sweep; default: results"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure and write; return 1 when something failed otherwise than by running out of memory.

    Raises :class:`UserError` for sizes that do not divide, and an implementation or device that cannot be used.
    """
    if arguments.sweep and arguments.output is not None:
        raise UserError("--sweep writes many files; give --output-dir instead of --output")
    if not arguments.sweep and arguments.output_dir is not None:
        raise UserError("--output-dir belongs to --sweep; give --output")
    return _sweep(arguments) if arguments.sweep else _single(arguments)


class _Bench:
    """Implementations, device and contract, resolved once for all points."""

    def __init__(self, names: Sequence[str], device: str, repeats: int) -> None:
        from attn_impls import discover
        from pytest_attn.perf.contract import contract_for
        from pytest_attn.perf.instruments import Instruments

        self.device = device_of(device)
        registry = discover()
        self.implementations = {name: _resolve(name, registry, self.device) for name in names}
        contract = contract_for("auto", self.device.type)
        # As many rounds as asked for, and their median whatever their spread, as in the course script.
        exactly = dataclasses.replace(contract, min_rounds=repeats, max_rounds=repeats, noisy_above=math.inf)
        self.instruments = Instruments(self.device, exactly)
        if self.device.type == "cpu":
            _say(f"on the CPU, in {DTYPE} as in the course script")

    def why_not(self, point: Point) -> str | None:
        return why_not(self.implementations[point.impl], point.problem(), self.device)

    def measure(self, point: Point) -> Measured:
        implementation = self.implementations[point.impl]
        return measure_point(implementation, point.problem(), self.instruments)


def _single(arguments: argparse.Namespace) -> int:
    values = {name: getattr(arguments, name) or [default] for name, default in _DEFAULTS.items()}
    for name, given in values.items():
        if len(given) > 1:
            raise UserError(f"--{name} takes one value unless --sweep is given, not {len(given)}")
    point = Point(**{name: given[0] for name, given in values.items()}, causal=arguments.causal)
    output = arguments.output or Path("benchmark_result.json")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder")
    point.problem()  # before torch is imported: a pair that does not divide is said at once
    bench = _Bench([point.impl], arguments.device, arguments.repeats)
    if (reason := bench.why_not(point)) is not None:
        raise UserError(f"{point.impl} cannot run {point} on {bench.device.type}: it {reason}")
    measured = bench.measure(point)
    print(f"{point}: {measured}", flush=True)
    for line in measured.complaints:
        _say(line)
    write_json(output, measured.to_json())
    print(output)
    return int(measured.outcome == "failed")


def _sweep(arguments: argparse.Namespace) -> int:
    axes = {name: getattr(arguments, name) or default for name, default in AXES.items() if name != "causal"}
    axes["causal"] = (True,) if arguments.causal else AXES["causal"]
    bench = _Bench([str(name) for name in axes["impl"]], arguments.device, arguments.repeats)
    planned = plan(axes, bench.why_not)
    for line in planned.skipped:
        _say(line)
    return sweep(planned.points, bench.measure, arguments.output_dir or Path("results"))


def _resolve(name: str, registry: Registry, device: torch.device) -> Implementation:
    """Return what ``name`` means: the script's ``Flash2`` and ``Pytorch``, or anything the registry knows."""
    from attn_impls import UnknownImplementation

    if name == "Pytorch":
        return _usable("naive", registry, device)
    if name == "Flash2":
        missing = why_missing(registry["flash-attn"], device.type) if "flash-attn" in registry else "it is unknown"
        if missing is None:
            return registry["flash-attn"]
        _say(f"Flash2 is sdpa-flash here, because flash-attn is missing: {missing}")
        return _usable("sdpa-flash", registry, device)
    try:
        return _usable(name, registry, device)
    except UnknownImplementation as error:
        known = "" if ":" in name else ", or the course script's Flash2 and Pytorch"
        raise UserError(f"{error}{known}") from None


def _usable(name: str, registry: Registry, device: torch.device) -> Implementation:
    implementation = registry.resolve(name)
    check_usable(name, implementation, device.type)
    return implementation


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def _say(line: str) -> None:
    print(f"attn lab5: {line}", file=sys.stderr, flush=True)
