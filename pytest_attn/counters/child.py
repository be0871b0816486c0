"""The program that Nsight Compute runs: each problem called once unseen and once inside an NVTX range of its own.

``python -m pytest_attn.counters.child REQUEST.json``; the request names the file that the answers go to, a line of JSON
each, so that what is known stays known when a later call takes the process with it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RANGE = "attn-profile-"
"""What the names of the ranges begin with; the number of the problem follows."""

Answer = Callable[..., None]


def main(path: str) -> None:
    """Carry out the request in the file ``path``."""
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    with Path(request["answers"]).open("w", encoding="utf-8") as file:

        def answer(**known: Any) -> None:
            file.write(json.dumps(known) + "\n")
            file.flush()

        serve(request, answer)


def serve(request: dict[str, Any], answer: Answer) -> None:
    """Call the implementation on each problem, and say how each went.

    Answers: ``{unavailable}`` where it cannot run here, else ``{machine, version}``, ``{problem, status, reason}`` for
    each problem and ``{resources}``.
    """
    from attn_impls import Direction, Problem, Unavailable, discover
    from pytest_attn.perf.device import lost_device, machine, pick_device
    from pytest_attn.perf.resources import resources_of
    from pytest_attn.probe import why_missing

    device = pick_device(request["device"])
    implementation = discover().resolve(request["impl"])
    if (reason := why_missing(implementation, device.type)) is not None:
        answer(unavailable=reason)
        return
    answer(machine=machine(device), version=implementation.version_or_unknown())
    lost = None
    for number, data in enumerate(request["problems"]):
        if lost is not None:
            answer(problem=number, status="error", reason=f"not tried: the device was lost before it ({lost})")
            continue
        try:
            _call(implementation, Problem.from_dict(data), Direction(request["direction"]), device, number)
        except Unavailable as error:
            answer(unavailable=str(error))
            return
        except Exception as error:
            status, reason = _failure(error)
            answer(problem=number, status=status, reason=reason)
            lost = lost_device(device)
        else:
            answer(problem=number, status="ok", reason=None)
    answer(resources=resources_of(implementation))


def _call(implementation: Any, problem: Any, direction: Any, device: Any, number: int) -> None:
    import torch

    from pytest_attn.correctness.case import Case, make_tensors
    from pytest_attn.perf.passes import timed_round

    # Backward in this thread, too: a range holds what its own thread launches, and autograd has one for each device.
    with torch.autograd.set_multithreading_enabled(False):
        prepare = timed_round(implementation, problem, make_tensors(Case(problem), device, draw_on=device), direction)
        prepare()()  # compiles and tunes
        call = prepare()
        _wait(device)
        with _range(number):
            call()
            _wait(device)


@contextlib.contextmanager
def _range(number: int) -> Iterator[None]:
    import torch

    torch.cuda.nvtx.range_push(f"{RANGE}{number}")
    try:
        yield
    finally:
        torch.cuda.nvtx.range_pop()


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _failure(error: Exception) -> tuple[str, str]:
    from pytest_attn.out_of_memory import is_out_of_memory

    status = "oom" if is_out_of_memory(error) else "error"
    return status, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


if __name__ == "__main__":
    main(sys.argv[1])
