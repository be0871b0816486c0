"""Which kernels ran, and whether most of the time went to the ones that the implementation claims."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attn_impls.implementation import Implementation
from attn_impls.problem import Direction, Problem
from pytest_attn.correctness.case import Tensors
from pytest_attn.perf.kineto import Trace
from pytest_attn.perf.passes import timed_round
from pytest_attn.perf.profiler import profiling
from pytest_attn.perf.timers import Call, Prepare

# Template arguments run to hundreds of characters; the name itself and its first arguments stand in front.
_LONGEST_NAME = 160
# What only moves, fills, allots or passes on: padding for a tile, a copy of a view, autograd's own nodes. It stands
# beside every implementation, and takes most of the time of a call that is small enough.
_MOVES = re.compile(
    r"^Mem(cpy|set)\b|direct_copy_kernel|FillFunctor|CatArrayBatchedCopy"
    r"|^autograd::|Backward\d*$|^GeneratedBackwardFor|^torch::autograd::"
    r"|^aten::(_?to(_copy)?|copy_|clone|contiguous|cat|fill_|zero_|zeros|ones|full|resolve_conj|detach_?|alias"
    r"|(new_)?(empty|zeros|ones|full)(_like|_strided)?|(_unsafe_)?view|(_reshape_)?alias|reshape|transpose|t|permute"
    r"|expand|as_strided|select|slice|narrow|squeeze|unsqueeze|scaled_dot_product_attention|_fused_sdp_choice)$"
)
# A CPU runs other programs too, and an operator that was interrupted looks long.
_LOOKS = 3


class RanAnother(AssertionError):
    """The implementation declares its kernels, and others took the time."""


def kernels_of(traces: Sequence[Trace]) -> list[dict[str, Any]]:
    """Return ``{name, share, count}`` of the kernels of one call, the longest first: shares of the summed time."""
    seconds: dict[str, float] = {}
    counts: dict[str, int] = {}
    for kernel in (kernel for traced in traces for kernel in traced.kernels):
        seconds[kernel.name] = seconds.get(kernel.name, 0.0) + kernel.duration_s
        counts[kernel.name] = counts.get(kernel.name, 0) + 1
    return _shares(seconds, {name: round(count / len(traces)) for name, count in counts.items()})


def operators_of(call: Callable[[], object]) -> list[dict[str, Any]]:
    """Run ``call`` on a CPU and return ``{name, share, count}`` of torch's operators, by the time spent in each itself.

    A CPU has no kernels to name; the operator that torch dispatched to tells a fused path from an unfused one.
    """
    with profiling("CPU") as profiler:
        call()
    averages = [average for average in profiler.key_averages() if average.self_cpu_time_total > 0]
    return _shares(
        {average.key: average.self_cpu_time_total * 1e-6 for average in averages},
        {average.key: average.count for average in averages},
    )


def _shares(seconds: Mapping[str, float], counts: Mapping[str, int]) -> list[dict[str, Any]]:
    total = sum(seconds.values())
    order = sorted(seconds, key=lambda name: -seconds[name])
    return [
        {"name": name, "share": round(seconds[name] / total, 4) if total else 0.0, "count": counts[name]}
        for name in order
    ]


def shortened(kernels: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Return ``kernels`` for a record: names cut, and what takes under a thousandth of the time left out."""
    kept = [kernel for kernel in kernels if kernel["share"] >= 0.001] or list(kernels[:1])
    return tuple({**kernel, "name": _cut(kernel["name"])} for kernel in kept)


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def identified_operators(prepare: Prepare, impl: Implementation) -> list[dict[str, Any]]:
    """Return :func:`operators_of` a call of ``prepare()()`` on a CPU, proved to be those of ``impl``.

    Raises :class:`RanAnother` where three calls in a row are spent in others.
    """
    for _ in range(_LOOKS - 1):
        operators = operators_of(prepare())
        with contextlib.suppress(RanAnother):
            check_identity(operators, impl)
            return operators
    operators = operators_of(prepare())
    check_identity(operators, impl)
    return operators


def halves(impl: Implementation, problem: Problem, tensors: Tensors) -> dict[Direction, Prepare]:
    """Return the forward, with its graph, and the backward of a call in both directions, each a round of its own.

    One of them may have fallen back, and the other one's kernels have most of the call's time.
    """

    def forward() -> Call:
        leaves = tensors.requires_grad()
        return lambda: impl(leaves.q, leaves.k, leaves.v, problem)

    return {Direction.FWD: forward, Direction.BWD: timed_round(impl, problem, tensors, Direction.BWD)}


def check_identity(kernels: Sequence[Mapping[str, Any]], impl: Implementation) -> None:
    """Raise :class:`RanAnother`, with the longest other kernel's name, unless ``impl``'s own kernels took the time.

    They must hold ``impl.kernels_share`` of it, without the kernels that only move data and are not its own.

    Args:
        kernels: ``{name, share, ...}``, the longest first.
        impl: declares a regular expression, which is searched for in each name; an empty one claims nothing.
    """
    if not impl.kernels:
        return
    own = [kernel for kernel in kernels if re.search(impl.kernels, kernel["name"])]
    others = [kernel for kernel in kernels if kernel not in own]
    computing = [kernel for kernel in others if not _MOVES.search(kernel["name"])]
    own_share, other_share = (sum(kernel["share"] for kernel in some) for some in (own, computing))
    if own and own_share >= impl.kernels_share * (own_share + other_share):
        return
    longest = next(iter(computing or others or kernels), None)
    raise RanAnother("ran no kernel at all" if longest is None else f"ran {_cut(longest['name'])}")
