"""``attn profile``: the hardware counters of an implementation's kernels, under the names that nvprof gave them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_attn.commands.arguments import check_usable, device_of, problems_of
from pytest_attn.commands.errors import UserError
from pytest_attn.commands.files import make_folder, write_json
from pytest_attn.commands.probing import first_line

if TYPE_CHECKING:
    from attn_impls import Implementation, Problem
    from pytest_attn.counters.document import Profile

HELP = "read the kernels' hardware counters with Nsight Compute: nvprof's rows, registers, spills, tensor pipe"

_GET_NCU = "it is part of the CUDA toolkit, and NVIDIA's package nsight-compute"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``attn profile`` takes."""
    parser.add_argument(
        "--impl",
        action="append",
        required=True,
        metavar="NAME[,NAME]|module:function",
        help="what to profile; may be given more than once",
    )
    parser.add_argument("--grid", default="hw4", metavar="NAME|FILE.toml", help="default: hw4")
    parser.add_argument("--direction", choices=("fwd", "bwd"), default="fwd", help="default: fwd")
    parser.add_argument("--device", default="cuda", metavar="cuda[:i]", help="default: cuda")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("attn-profile"), metavar="DIR", help="default: attn-profile"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: profile.json in the folder of --output")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=600.0,
        metavar="SECONDS",
        help="for each implementation, building it included (default: 600)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Profile, print the tables, write JSON and charts; return 1 when a call failed or none was profiled.

    Raises :class:`UserError` for input that cannot be used, and after what was profiled has been printed and written,
    where Nsight Compute failed on the rest.
    """
    from attn_impls import Direction

    direction = Direction(arguments.direction)
    target = _target(arguments.output, arguments.json)
    problems = problems_of(arguments.grid)
    implementations = _implementations(arguments.impl)
    _check_device(arguments.device, implementations)
    path, version = _nsight_compute()
    from pytest_attn.counters.document import Profile
    from pytest_attn.counters.ncu import summary
    from pytest_attn.counters.shown import lines

    profile = Profile(arguments.grid, direction, version)
    claimed = _claimed(profile, implementations, problems)
    make_folder(target.parent)
    _profile(profile, claimed, path, arguments, target)
    profiled = any(call.status == "ok" for call in profile.calls)
    if profile.failures and not profiled:
        raise UserError("; ".join(profile.failures))
    print(*lines(profile), sep="\n")
    said = f"{target}{_charts(profile, arguments.output)}" if profiled else "nothing written"
    print(f"{summary(profile.calls)}; {said}")
    if profile.failures:
        raise UserError("; ".join(profile.failures))
    return int(not profiled or any(call.status == "error" for call in profile.calls))


def _profile(
    profile: Profile,
    claimed: dict[str, list[Problem]],
    path: str,
    arguments: argparse.Namespace,
    target: Path,
) -> None:
    """Profile one implementation after the other; each leaves the JSON as if it were the last."""
    from pytest_attn.counters.ncu import Findings, Ncu, NcuFailed
    from pytest_attn.text import count

    ncu = Ncu(path, arguments.timeout)
    # Calls that were not claimed stand in the profile already.
    found = Findings(profile.calls)
    for number, (impl, problems) in enumerate(claimed.items(), 1):
        _say(f"[{number}/{len(claimed)}] {impl}: {count(len(problems), 'problem')} under {profile.ncu}")
        try:
            ncu.profile(impl, problems, profile.direction, arguments.device, found)
        except NcuFailed as error:
            profile.failures.append(str(error))
            if error.everywhere:
                return
        finally:
            profile.machine, profile.versions = found.machine, found.versions
            if any(call.status == "ok" for call in profile.calls):  # or a former profile would be lost for nothing
                write_json(target, profile.to_dict())


def _target(output: Path, json: Path | None) -> Path:
    """Return the file for the JSON; refuse now what would fail after minutes of profiling."""
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is not a folder")
    if json is not None and json.is_dir():
        raise UserError(f"--json {json} is a folder")
    return json or output / "profile.json"


def _implementations(given: list[str]) -> dict[str, Implementation]:
    from attn_impls import UnknownImplementation, discover

    registry = discover()
    names = [name.strip() for each in given for name in each.split(",")]
    if not all(names):
        raise UserError("--impl holds an empty name")
    try:
        return {name: registry.resolve(name) for name in names}
    except UnknownImplementation as error:
        raise UserError(str(error)) from None


def _check_device(device: str, implementations: dict[str, Implementation]) -> None:
    if not device.startswith("cuda"):
        raise UserError(f"--device {device}: Nsight Compute counts on CUDA devices only")
    device_of(device)
    for name, implementation in implementations.items():
        check_usable(name, implementation, "cuda")


def _nsight_compute() -> tuple[str, str]:
    """Return the path of Nsight Compute and what it calls itself."""
    from attn_impls.tiled.build import cuda_tool

    path = cuda_tool("ncu")
    if path is None:
        raise UserError(f"Nsight Compute (ncu) is not here; {_GET_NCU}")
    version = first_line((path, "--version"), "Version")
    if version is None:
        raise UserError(f"{path} does not run; {_GET_NCU}")
    return path, f"Nsight Compute {version.removeprefix('Version').strip()}"


def _claimed(
    profile: Profile, implementations: dict[str, Implementation], problems: list[Problem]
) -> dict[str, list[Problem]]:
    """Return the problems that each implementation takes; put the others into ``profile`` as unsupported."""
    from pytest_attn.counters.document import Call

    claimed: dict[str, list[Problem]] = {}
    reasons = []
    for name, implementation in implementations.items():
        for problem in problems:
            reason = implementation.capabilities.why_not(problem, profile.direction, "cuda")
            if reason is None:
                claimed.setdefault(name, []).append(problem)
            else:
                profile.calls.append(Call(name, problem, profile.direction, "unsupported", reason))
                reasons.append(f"{name} {reason}")
    if not claimed:
        raise UserError(f"nothing to profile; {'; '.join(dict.fromkeys(reasons))}")
    return claimed


def _charts(profile: Profile, folder: Path) -> str:
    """Write the charts; return what to say of them."""
    try:
        from pytest_attn.counters.figures import files
    except ImportError as error:
        return f"; no charts: {error.name} is missing, pip install 'pytest-attn[report]'"
    made = files(profile)
    if not made:
        return "; no charts, which need two lengths"
    make_folder(folder)
    try:
        for name, content in made.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write charts to {folder}: {error.strerror or error}") from None
    return f"; {len(made) // 2} charts in {folder}"


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _say(line: str) -> None:
    print(f"attn profile: {line}", file=sys.stderr, flush=True)
