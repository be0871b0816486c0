"""Judge a problem that is too large to judge whole by its last key head."""

from __future__ import annotations

from dataclasses import replace

import torch

from attn_impls.implementation import Implementation, Unavailable
from attn_impls.problem import Direction
from pytest_attn.correctness.case import Case, make_tensors
from pytest_attn.correctness.judge import Verdict, verdict_or_results
from pytest_attn.correctness.running import NotDifferentiable, run
from pytest_attn.correctness.standard import cut, cut_result, judge_results
from pytest_attn.frames import ErrorAsText, forget_frames, own_frames
from pytest_attn.out_of_memory import with_no_room_told


@with_no_room_told
def judge_last(impl: Implementation, case: Case, direction: Direction, device: torch.device) -> Verdict:
    """Run ``impl`` on ``case`` and judge the last key head of the last batch.

    That is where an offset that overflowed shows. The inputs are drawn on the device and nothing is copied, so that
    memory is that of the implementation. What it raises is a verdict, as by :func:`.judge.judge`, with an
    :class:`.ErrorAsText`.

    Raises:
        NoRoom: memory does not hold it.
        Unavailable: the implementation says that it cannot run at all.
        NotDifferentiable: its output has no gradient.
    """
    try:
        verdict = _judge_last(impl, case, direction, device)
    except (Unavailable, NotDifferentiable) as error:
        forget_frames(error)
        raise
    if verdict.raised is None:
        return verdict
    as_text = ErrorAsText(str(verdict.broken), own_frames(verdict.raised))
    forget_frames(verdict.raised)
    return replace(verdict, raised=as_text)


def _judge_last(impl: Implementation, case: Case, direction: Direction, device: torch.device) -> Verdict:
    problem = case.problem
    tensors = make_tensors(case, device, draw_on=device)

    def results() -> dict[str, torch.Tensor]:
        got = run(impl, problem, tensors, direction)
        _wait_for(device)
        return got

    got = verdict_or_results(impl, case, direction, device, results)
    if isinstance(got, Verdict):
        return got
    last = (problem.batch - 1, problem.kv_heads - 1)
    part, inputs = cut(problem, tensors, *last)
    verdicts = judge_results({name: cut_result(problem, each, *last) for name, each in got.items()}, part, inputs)
    return Verdict(impl.name, case, direction, str(device), tuple(verdicts))


def _wait_for(device: torch.device) -> None:
    """Let what a kernel did wrong show now, where the implementation is known."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
