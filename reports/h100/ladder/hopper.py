"""A quick look at the Hopper rungs on the device that they are for: do they compute, and how fast are they.

``hopper.sh`` beside this runs it: ``build FAMILY``, ``check RUNG`` (one process each, as a kernel that traps takes its
context along) and ``time RUNG...``. The suite is what judges; this only tells soon where to look.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch

from attn_impls import tiled
from attn_impls.problem import CAUSAL, FULL, Direction, Mask, Problem
from attn_impls.registry import discover
from attn_impls.tiled import build, ops
from attn_impls.tiled.ops import Family

TOP_LEFT = Mask("causal_top_left")
# (problem, how its tensors lie)
CASES = [
    (Problem(1, 1, 1, 64, 128, 64, "bf16", FULL), "bshd"),
    (Problem(1, 1, 1, 64, 64, 64, "bf16", FULL), "bshd"),
    (Problem(1, 1, 1, 64, 512, 64, "bf16", FULL), "bshd"),
    (Problem(1, 1, 1, 256, 512, 64, "bf16", FULL), "bhsd"),
    (Problem(1, 1, 1, 64, 128, 128, "bf16", FULL), "bshd"),
    (Problem(1, 1, 1, 256, 512, 128, "bf16", FULL), "bshd"),
    (Problem(1, 1, 1, 256, 512, 256, "bf16", FULL), "bshd"),
    (Problem(2, 3, 3, 384, 384, 64, "bf16", CAUSAL), "bshd"),
    (Problem(2, 3, 3, 384, 384, 128, "bf16", CAUSAL), "bhsd"),
    (Problem(2, 3, 3, 384, 384, 256, "bf16", CAUSAL), "bshd"),
    (Problem(2, 2, 2, 1000, 1030, 64, "fp16", CAUSAL), "bshd"),
    (Problem(2, 2, 2, 1000, 1030, 128, "fp16", CAUSAL), "bshd"),
    (Problem(2, 2, 2, 1030, 1000, 128, "bf16", CAUSAL), "bshd"),
    (Problem(1, 2, 2, 700, 500, 64, "bf16", TOP_LEFT), "bshd"),
    (Problem(1, 2, 2, 500, 700, 128, "fp16", TOP_LEFT), "bhsd"),
    (Problem(1, 2, 2, 1025, 1025, 64, "bf16", Mask("window", 100, 0)), "bshd"),
    (Problem(1, 2, 2, 777, 900, 128, "bf16", Mask("window", 130, 70)), "bshd"),
    (Problem(1, 2, 2, 777, 900, 256, "fp16", Mask("window", 1, 1)), "bshd"),
    (Problem(2, 8, 2, 333, 333, 64, "bf16", CAUSAL), "bshd"),
    (Problem(2, 8, 1, 333, 450, 128, "bf16", FULL), "bhsd"),
    (Problem(3, 4, 2, 1, 300, 64, "fp16", CAUSAL), "bshd"),
    (Problem(3, 4, 2, 1, 1, 128, "fp16", FULL), "bshd"),
    (Problem(1, 1, 1, 200, 40, 8, "fp16", Mask("window", 3, 2)), "bshd"),
    (Problem(1, 2, 2, 130, 129, 40, "bf16", CAUSAL), "bshd"),
    (Problem(1, 2, 2, 300, 310, 72, "bf16", FULL), "bhsd"),
    (Problem(1, 2, 2, 300, 310, 136, "fp16", CAUSAL), "bshd"),
    (Problem(1, 2, 2, 300, 310, 200, "bf16", FULL), "bshd"),
    (Problem(0, 2, 2, 5, 5, 64, "bf16", CAUSAL), "bshd"),
    (Problem(2, 150, 150, 512, 512, 64, "bf16", CAUSAL), "bshd"),  # heads one by one before a section
    (Problem(2, 100, 100, 512, 512, 128, "bf16", CAUSAL), "bshd"),
    (Problem(1, 70, 70, 512, 512, 256, "bf16", CAUSAL), "bshd"),
    (Problem(1, 4, 4, 400, 400, 64, "bf16", CAUSAL), "expanded"),
    (Problem(2, 2, 2, 150, 150, 64, "bf16", CAUSAL), "shifted"),
    (Problem(1, 2, 2, 4096, 4096, 64, "bf16", CAUSAL), "bshd"),
    (Problem(1, 2, 2, 4096, 4096, 128, "bf16", FULL), "bshd"),
    # More query tiles than an H100 has multiprocessors, so that blocks that stay compute several each: heads that are
    # no multiple of anything, tiles without keys between others, ragged last ones, one key tile each, groups.
    (Problem(3, 29, 29, 333, 333, 64, "bf16", FULL), "bshd"),
    (Problem(3, 29, 29, 333, 333, 64, "fp16", CAUSAL), "bhsd"),
    (Problem(2, 21, 7, 640, 640, 128, "bf16", CAUSAL), "bshd"),
    (Problem(2, 21, 7, 640, 700, 128, "fp16", FULL), "bshd"),
    (Problem(1, 23, 23, 1400, 260, 64, "bf16", CAUSAL), "bshd"),
    (Problem(1, 23, 23, 1400, 260, 128, "bf16", CAUSAL), "bshd"),
    (Problem(2, 12, 4, 1000, 300, 128, "bf16", Mask("window", 40, 10)), "bshd"),
    (Problem(1, 40, 40, 1100, 1100, 64, "bf16", Mask("window", 200, 0)), "bshd"),
    (Problem(2, 24, 8, 600, 600, 256, "bf16", CAUSAL), "bshd"),
    (Problem(2, 24, 24, 600, 610, 256, "fp16", FULL), "bshd"),
    (Problem(50, 9, 9, 30, 30, 64, "bf16", CAUSAL), "bshd"),
    (Problem(50, 9, 3, 130, 7, 128, "bf16", FULL), "bshd"),
    (Problem(2, 40, 40, 576, 576, 64, "bf16", FULL), "bshd"),
    (Problem(2, 40, 40, 576, 576, 64, "bf16", TOP_LEFT), "bshd"),
]
TIMED = [
    Problem(16384 // length, 2048 // width, 2048 // width, length, length, width, "bf16", mask)
    for width in (64, 128)
    for mask in (FULL, CAUSAL)
    for length in (512, 1024, 4096, 16384)
]
ROUNDS, WARM = 9, 3

# tiled-async without its backward, which takes minutes to build.
ASYNC_FORWARD = Family(
    "async",
    build.Extension(
        "attn_tiled_async_forward",
        sources=(build.CSRC / "cuda" / "async_forward.cu",),
        folders=(build.CSRC, build.CSRC / "cuda"),
        cuda_cflags=tiled.ASYNC.extension.cuda_cflags,
    ),
    backward=False,
)
Tensor = torch.Tensor
Call = Callable[[Tensor, Tensor, Tensor, Problem], tuple[Tensor, Tensor]]


def family_of(rung: str) -> Family:
    return ASYNC_FORWARD if rung == "tiled-async" else getattr(tiled, rung.removeprefix("tiled-").upper())


def call_of(name: str) -> Call:
    family = family_of(name)

    def call(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
        diagonals = ops.diagonals(problem.mask, problem.q_len, problem.kv_len)
        return ops.attention(family, q, k, v, problem.softmax_scale, *diagonals)

    return call


def tensor(batch: int, heads: int, rows: int, problem: Problem, layout: str) -> Tensor:
    dtype = torch.bfloat16 if problem.dtype == "bf16" else torch.float16
    width = problem.head_dim
    if layout == "bhsd":
        return torch.randn(batch, heads, rows, width, device="cuda").to(dtype)
    if layout == "expanded":
        return torch.randn(batch, 1, rows, width, device="cuda").to(dtype).expand(batch, heads, rows, width)
    if layout == "shifted":  # rows begin at odd multiples of two bytes
        return torch.randn(batch, rows, heads, width + 1, device="cuda").to(dtype)[..., 1:].transpose(1, 2)
    return torch.randn(batch, rows, heads, width, device="cuda").to(dtype).transpose(1, 2)


def expected(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    group = problem.heads // problem.kv_heads
    k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
    scores = q.float() @ k.mT * problem.softmax_scale
    low, high = problem.mask.diagonals(problem.q_len, problem.kv_len)
    diagonal = torch.arange(problem.kv_len, device="cuda") - torch.arange(problem.q_len, device="cuda")[:, None]
    hidden = torch.zeros_like(diagonal, dtype=torch.bool)
    if low is not None:
        hidden |= diagonal < low
    if high is not None:
        hidden |= diagonal > high
    scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(-1).nan_to_num(0.0) @ v, scores.logsumexp(-1)


def check(rung: str, call: Call) -> int:
    """Print one line a case; what a kernel leaves unwritten shows as NaN, which deterministic mode fills in."""
    return check_numbers(rung, call) + check_launches(rung, call) + check_far_offsets(rung, call)


def check_numbers(rung: str, call: Call, takes: Callable[[Problem], bool] = lambda problem: True) -> int:
    """Compare with attention in fp32, in the cases that ``call`` takes. Returns in how many it differs."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.use_deterministic_algorithms(True)
    wrong = 0
    for problem, layout in CASES:
        if not takes(problem):
            continue
        q = tensor(problem.batch, problem.heads, problem.q_len, problem, layout if layout != "expanded" else "bshd")
        k, v = (tensor(problem.batch, problem.kv_heads, problem.kv_len, problem, layout) for _ in range(2))
        out, lse = call(q, k, v, problem)
        torch.cuda.synchronize()
        want, want_lse = expected(q, k, v, problem)
        error = (out.float() - want).abs()
        lse_error = (lse - want_lse).abs().masked_fill(lse == want_lse, 0.0)
        allowed = 4 * torch.finfo(q.dtype).eps * (want.abs().max().item() if want.numel() else 0.0)
        most = error.nan_to_num(float("inf")).max().item() if error.numel() else 0.0
        most_lse = lse_error.nan_to_num(float("inf")).max().item() if lse_error.numel() else 0.0
        right = most <= allowed and most_lse <= 1e-3
        where = ""
        if not right:
            wrong += 1
            rows = (~(error <= allowed)).any(-1).nonzero()
            columns = (~(error <= allowed)).flatten(0, -2).any(0).nonzero().flatten()
            where = f"; {len(rows)} rows wrong, {rows[:1].tolist()} to {rows[-1:].tolist()}, {len(columns)} columns"
            where += (
                f" from {columns[:1].tolist()}; got {out.flatten()[:2].tolist()} want {want.flatten()[:2].tolist()}"
            )
        said = f"{problem.id} {layout}: out {most:.2g} of {allowed:.2g}, lse {most_lse:.1g}{where}"
        print("ok " if right else "BAD", rung, said)
        sys.stdout.flush()
    torch.use_deterministic_algorithms(False)
    return wrong


def check_launches(rung: str, call: Call, width: int = 128) -> int:
    """Compare the bits of one launch with those of others: one after the other, side by side, and out of a graph."""
    problem = Problem(4, 2048 // width, 2048 // width, 2048, 2048, width, "bf16", CAUSAL)
    qkv = [tensor(problem.batch, problem.heads, problem.q_len, problem, "bshd") for _ in range(3)]
    first, _ = call(*qkv, problem)
    after = [call(*qkv, problem)[0] for _ in range(50)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    beside = []
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                beside.append(call(*qkv, problem)[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured, _ = call(*qkv, problem)
    replayed = []
    for _ in range(5):
        captured.zero_()
        graph.replay()
        replayed.append(captured.clone())
    differ = 0
    for how, outs in (("in a row", after), ("on three streams", beside), ("of a graph", replayed)):
        other = sum(not torch.equal(first, out) for out in outs)
        print(
            f"{'BAD' if other else 'ok '} {rung}: {other} of {len(outs)} launches {how} differ from the first in bits"
        )
        differ += other
    return differ


def check_far_offsets(rung: str, call: Call) -> int:
    """Ask for attention to a head of k and v that lies past the first 2^31 numbers."""
    problem = Problem(1, 40, 40, 1, 1 << 20, 64, "bf16", FULL)
    q = torch.randn(1, 40, 1, 64, device="cuda", dtype=torch.bfloat16) * 6
    k, v = (torch.randn(1, 40, 1 << 20, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out, _ = call(q, k, v, problem)
    want, _ = expected(q[:, -1:], k[:, -1:], v[:, -1:], Problem(1, 1, 1, 1, 1 << 20, 64, "bf16", FULL))
    far = ((out[:, -1:].float() - want).abs().max() / want.abs().max()).item()
    print(f"{'ok ' if far <= 2e-2 else 'BAD'} {rung}: offsets past 32 bits, error {far:.2g}")
    return int(far > 2e-2)


def milliseconds(calls: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the median time of each call on the device: they take turns, each with a cold L2 cache."""
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(WARM + rounds):
        first = turn % len(names)  # so that none is always the first of a turn, or the last
        for name in names[first:] + names[:first]:
            flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            calls[name]()
            end.record()
            end.synchronize()
            if turn >= WARM:
                times[name].append(begin.elapsed_time(end))
    return {name: statistics.median(taken) for name, taken in times.items()}


def measure(names: list[str]) -> int:
    """Print a table of medians."""
    registry = discover()
    print(f"{'bf16, TFLOP/s (ms)':34s}" + "".join(f"{name:>20s}" for name in names))
    for problem in TIMED:
        qkv = [tensor(problem.batch, problem.heads, problem.q_len, problem, "bshd") for _ in range(3)]
        functions = {name: call_of(name) if name.startswith("tiled-") else registry[name] for name in names}
        taken = milliseconds({name: partial(call, *qkv, problem) for name, call in functions.items()})
        cells = (f"{problem.flops(Direction.FWD) / ms / 1e9:12.0f} ({ms:5.3f})" for ms in taken.values())
        print(f"{problem.id:34s}{''.join(cells)}", flush=True)
    return 0


def main(arguments: list[str]) -> int:
    what, *names = arguments
    if what == "build":
        for name in names:
            ops.load(family_of(name))
        return 0
    return min(check(names[0], call_of(names[0])), 99) if what == "check" else measure(names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
