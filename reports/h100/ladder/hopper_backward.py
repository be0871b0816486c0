"""A quick look at the backward of the Hopper rungs on the device that it is for, as ``hopper.py`` looks at the forward.

``hopper_backward.sh`` beside this runs it: ``build RUNG``; ``check MODE``, one process for each mode, because a kernel
that traps takes its context along: ``default``, ``deterministic``, ``far`` or ``wide``; ``time NAME...``; and ``kernels
NAME...``, which tells the time of each kernel of a call.
"""

from __future__ import annotations

import math
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from hopper import CASES, TIMED, TOP_LEFT, tensor

from attn_impls import tiled
from attn_impls.problem import CAUSAL, FULL, Direction, Mask, Problem
from attn_impls.registry import discover
from attn_impls.tiled import ops
from pytest_attn.perf import kineto

Tensor = torch.Tensor
Operator = Callable[..., tuple[Tensor, Tensor, Tensor]]
WIDEST = tiled.WS.widest_backward or 0
MORE = [
    (Problem(1, 1, 1, 128, 128, 64, "bf16", FULL), "bshd"),
    (Problem(1, 1, 1, 64, 128, 128, "fp16", FULL), "bshd"),
    (Problem(1, 1, 1, 192, 128, 128, "bf16", FULL), "bshd"),
    (Problem(1, 1, 1, 384, 256, 64, "fp16", FULL), "bshd"),
    (Problem(2, 6, 2, 500, 500, 128, "bf16", CAUSAL), "bshd"),
    (Problem(1, 2, 1, 130, 700, 64, "bf16", TOP_LEFT), "bshd"),
    (Problem(1, 2, 1, 700, 130, 128, "bf16", CAUSAL), "bshd"),
    (Problem(1, 1, 1, 600, 600, 64, "fp16", Mask("window", 0, 0)), "bshd"),
    (Problem(9, 32, 32, 500, 512, 64, "bf16", CAUSAL), "bshd"),  # nine tiles of keys for a multiprocessor
]
BACKWARD_CASES = [*MORE, *((problem, layout) for problem, layout in CASES if problem.head_dim <= WIDEST)]
ROUNDS, WARM = 7, 2
LONGEST_TOLD = 1024  # of the lengths whose kernels are told one by one
WAIT_CLOCKS = 400_000  # before a timed call, 0.2 ms in which the host gets ahead of the device


def operator_of(mode: str) -> Operator:
    """Return the backward operator of ``default`` or ``deterministic``."""
    ops.load(tiled.WS)
    return getattr(torch.ops.attn_tiled, tiled.WS.backward_names[mode == "deterministic"])


def truth(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, dlse: Tensor, problem: Problem
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return the output, the log-sum-exp and the gradients in fp32, by the formulas and not by autograd."""
    group = problem.heads // problem.kv_heads
    q, dout = q.float(), dout.float()
    k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
    scores = q @ k.mT * problem.softmax_scale
    low, high = problem.mask.diagonals(problem.q_len, problem.kv_len)
    diagonal = torch.arange(problem.kv_len, device="cuda") - torch.arange(problem.q_len, device="cuda")[:, None]
    hidden = torch.zeros_like(diagonal, dtype=torch.bool)
    if low is not None:
        hidden |= diagonal < low
    if high is not None:
        hidden |= diagonal > high
    lse = scores.masked_fill(hidden, float("-inf")).logsumexp(-1)
    weights = (scores - lse.nan_to_num(neginf=0.0)[..., None]).exp().masked_fill(hidden, 0.0)
    dweights = dout @ v.mT
    ds = weights * (dweights - ((weights * dweights).sum(-1) - dlse)[..., None]) * problem.softmax_scale

    def of_key_heads(x: Tensor) -> Tensor:
        return x.unflatten(1, (problem.kv_heads, group)).sum(2)

    grads = (ds @ k, of_key_heads(ds.mT @ q), of_key_heads(weights.mT @ dout))
    return weights @ v, lse, grads


def wrong_where(x: Tensor, y: Tensor, allowed: float) -> str:
    """Tell which heads, rows and columns are wrong, which is what an error in an index looks like."""
    wrong = ~((x.float() - y).abs() <= allowed)
    if not wrong.any():
        return ""
    sets = [wrong.any(dim=tuple(d for d in range(4) if d != dim)).nonzero().flatten().tolist() for dim in range(4)]
    names = ("batch", "head", "row", "column")
    told = ", ".join(f"{len(found)}/{x.shape[i]} {names[i]}s {found[0]}..{found[-1]}" for i, found in enumerate(sets))
    at = wrong.nonzero()[0].tolist()
    pairs = [(round(x[tuple(at)].item(), 4), round(y[tuple(at)].item(), 4))]
    return f" [{told}; first {at} got, want {pairs}; ratio {(x.float() * y).sum() / (y * y).sum():.3g}]"


def judged(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> tuple[bool, str]:
    """Compare gradients by their relative error as vectors, and each number with the largest."""
    right, said = True, []
    for name, x, y in zip(("dq", "dk", "dv"), got, want, strict=True):
        if not y.numel():
            said.append(f"{name} empty")
            continue
        eps = torch.finfo(x.dtype).eps
        size = max(y.square().mean().sqrt().item(), 0.01)
        error = (x.float() - y).square().mean().sqrt().item() / size
        most = 8 * eps * max(y.abs().max().item(), 0.05)
        where = wrong_where(x, y, most)
        fine = error <= 2 * eps and not where
        right &= fine
        said.append(f"{name} {error / eps:.2f} eps{where}")
    return right, ", ".join(said)


def check(operator: Operator, mode: str) -> int:
    """Print one line a case; what a kernel leaves unwritten shows as NaN, which deterministic mode fills in."""
    wrong = 0
    for number, (problem, layout) in enumerate(BACKWARD_CASES):
        torch.manual_seed(number)
        rows_layout = "bshd" if layout == "expanded" else layout
        q, dout = (tensor(problem.batch, problem.heads, problem.q_len, problem, rows_layout) for _ in range(2))
        k, v = (tensor(problem.batch, problem.kv_heads, problem.kv_len, problem, layout) for _ in range(2))
        dlse = torch.randn(problem.batch, problem.heads, problem.q_len, device="cuda") * (number % 2)
        out, lse, want = truth(q, k, v, dout, dlse, problem)
        arguments = (dout, q, k, v, out.to(q.dtype), lse, dlse if number % 2 else None, problem.softmax_scale)
        diagonals = ops.diagonals(problem.mask, problem.q_len, problem.kv_len)
        got = operator(*arguments, *diagonals)
        torch.cuda.synchronize()
        right, said = judged(got, want)
        again = [operator(*arguments, *diagonals) for _ in range(3)]
        names = ("dq", "dk", "dv") if mode == "deterministic" else ("dk", "dv")  # dq is added up in any order
        differ = {
            name
            for some in again
            for name, x, y in zip(("dq", "dk", "dv"), got, some, strict=True)
            if name in names and not torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0))
        }
        wrong += not right or bool(differ)
        more = f"; bits of {sorted(differ)} differ" if differ else ""
        print(f"{'ok ' if right and not differ else 'BAD'} {mode} {problem.id} {layout}: {said}{more}", flush=True)
    return wrong


def check_graph_and_streams(operator: Operator) -> int:
    """Compare a captured graph's launches, and those of two streams at a time, with a plain one."""
    problems = [Problem(2, 8, 8, 1024, 1024, width, "bf16", CAUSAL) for width in (64, 128)]
    calls, plain = [], []
    for problem in problems:
        q, k, v, dout = (tensor(2, 8, 1024, problem, "bshd") for _ in range(4))
        out, lse = tiled.tiled_ws(q, k, v, problem, return_lse=True)
        diagonals = ops.diagonals(CAUSAL, 1024, 1024)
        calls.append((dout, q, k, v, out, lse, None, problem.softmax_scale, *diagonals))
        plain.append(operator(*calls[-1]))
    torch.cuda.synchronize()

    def differs(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> bool:
        near = (got[0] - want[0]).abs().max() <= 0.05 * want[0].abs().max()  # dq is added up in any order
        return not near or not all(torch.equal(x, y) for x, y in zip(got[1:], want[1:], strict=True))

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [operator(*call) for call in calls]
    in_graph = 0
    for _ in range(20):
        for grads in captured:
            for x in grads:
                x.fill_(torch.nan)
        graph.replay()
        in_graph += any(differs(got, want) for got, want in zip(captured, plain, strict=True))
    streams = [torch.cuda.Stream() for _ in calls]
    together = []
    for _ in range(20):
        for stream, call, want in zip(streams, calls, plain, strict=True):
            with torch.cuda.stream(stream):
                together.append((operator(*call), want))
    torch.cuda.synchronize()
    in_streams = sum(differs(got, want) for got, want in together)
    print(
        f"{'BAD' if in_graph or in_streams else 'ok '} {in_graph} of 20 launches of a graph and {in_streams} of 40 "
        "launches in two streams differ",
        flush=True,
    )
    return in_graph + in_streams


def check_under_load(operator: Operator) -> int:
    """Compare the bits of 100 launches that fill the device, in deterministic mode."""
    wrong = 0
    for width, mask in ((64, CAUSAL), (128, FULL), (128, CAUSAL)):
        problem = Problem(4, 16, 16, 2048, 2048, width, "bf16", mask)
        q, k, v, dout = (tensor(4, 16, 2048, problem, "bshd") for _ in range(4))
        out, lse = tiled.tiled_ws(q, k, v, problem, return_lse=True)
        arguments = (dout, q, k, v, out, lse, None, problem.softmax_scale, *ops.diagonals(mask, 2048, 2048))
        first = operator(*arguments)
        differ = sum(
            not all(torch.equal(x, y) for x, y in zip(first, operator(*arguments), strict=True)) for _ in range(100)
        )
        wrong += differ
        print(f"{'BAD' if differ else 'ok '} {problem.id}: {differ} of 100 launches differ in their bits", flush=True)
    return wrong


def check_far() -> int:
    """Check the last head of keys, which lies past the first 2^31 numbers."""
    q = torch.randn(1, 40, 1, 64, device="cuda", dtype=torch.bfloat16) * 6
    k, v = (torch.randn(1, 40, 1 << 20, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    qkv = tuple(x.requires_grad_() for x in (q, k, v))
    dout = torch.randn_like(q)
    got = torch.autograd.grad(tiled.tiled_ws(*qkv, Problem(1, 40, 40, 1, 1 << 20, 64, "bf16", FULL)), qkv, dout)
    last = [x[:, -1:].detach() for x in (q, k, v)]
    problem = Problem(1, 1, 1, 1, 1 << 20, 64, "bf16", FULL)
    want = truth(*last, dout[:, -1:], torch.zeros(1, 1, 1, device="cuda"), problem)[2]
    errors = [((x[:, -1:].float() - y).abs().max() / y.abs().max()).item() for x, y in zip(got, want, strict=True)]
    right = max(errors) <= 2e-2
    print(f"{'ok ' if right else 'BAD'} offsets past 32 bits: dq, dk, dv off by {[f'{x:.2g}' for x in errors]}")
    return int(not right)


def check_wide() -> int:
    """Check heads that are wider than the backward takes, which go to that of tiled-async, through autograd."""
    problem = Problem(1, 4, 2, 300, 333, 256, "bf16", CAUSAL)
    q, dout = (tensor(1, 4, 300, problem, "bshd") for _ in range(2))
    k, v = (tensor(1, 2, 333, problem, "bshd") for _ in range(2))
    want = truth(q, k, v, dout, torch.zeros(1, 4, 300, device="cuda"), problem)[2]
    qkv = tuple(x.requires_grad_() for x in (q, k, v))
    right, said = judged(torch.autograd.grad(tiled.tiled_overlap(*qkv, problem), qkv, dout), want)
    print(f"{'ok ' if right else 'BAD'} {problem.id} through autograd: {said}")
    return int(not right)


class Timed:
    """The backward of ``names``, each on the same tensors, to be called as often as one likes.

    ``tiled-ws!`` is ``tiled-ws`` in deterministic mode.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._attentions = {name: discover()[name.removesuffix("!")] for name in names}
        torch.utils.deterministic.fill_uninitialized_memory = False

    def calls(self, problem: Problem) -> dict[str, Callable[[], object]]:
        """Return one call for each name; who calls one in deterministic mode turns that on before it."""
        qkv = [tensor(problem.batch, problem.heads, problem.q_len, problem, "bshd") for _ in range(3)]
        dout = tensor(problem.batch, problem.heads, problem.q_len, problem, "bshd")
        leaves = [x.requires_grad_() for x in qkv]
        return {
            name: partial(torch.autograd.grad, attention(*leaves, problem), leaves, dout, retain_graph=True)
            for name, attention in self._attentions.items()
        }


def measure(names: list[str]) -> int:
    """Print a table of medians of the backward alone: all take turns, each call with a cold L2 cache.

    Its last line is the geometric mean of how much faster than the first each is. The first calls are announced, so
    that one that ends the process is known.
    """
    timed = Timed(names)
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    print(f"{'bf16, TFLOP/s (ms)':22s}" + "".join(f"{name:>16s}" for name in names), flush=True)
    logs = dict.fromkeys(names, 0.0)
    for problem in TIMED:
        calls = timed.calls(problem)
        times: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(WARM + ROUNDS):
            for name in names:
                if problem is TIMED[0] and turn == 0:
                    print(f"first call: {name}", file=sys.stderr, flush=True)
                torch.use_deterministic_algorithms(name.endswith("!"))
                flush.zero_()
                torch.cuda._sleep(WAIT_CLOCKS)
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                calls[name]()
                end.record()
                end.synchronize()
                if turn >= WARM:
                    times[name].append(begin.elapsed_time(end))
        torch.use_deterministic_algorithms(False)
        cells = ""
        for name in names:
            ms = statistics.median(times[name])
            logs[name] += math.log(statistics.median(times[names[0]]) / ms) / len(TIMED)
            cells += f"{problem.flops(Direction.BWD) / ms / 1e9:7.0f} ({ms:6.3f})"
        print(f"{told(problem):22s}{cells}", flush=True)
    print(f"{'against ' + names[0]:22s}" + "".join(f"{math.exp(logs[name]):16.3f}" for name in names))
    return 0


def kernel_times(names: list[str]) -> int:
    """Print the median time of each kernel of a call, at short lengths, and that from the first to the last."""
    timed = Timed(names)
    flush = kineto.Flush(torch.device("cuda"))
    for problem in TIMED:
        if problem.q_len > LONGEST_TOLD:
            continue
        for name, call in timed.calls(problem).items():
            try:
                said = parts(kineto.trace([kineto.Round(lambda call=call: call)] * ROUNDS, flush))
            except (kineto.LostTrack, kineto.StrayWork) as error:
                said = str(error)
            print(f"{told(problem):22s} {name:14s} {said}", flush=True)
    return 0


def told(problem: Problem) -> str:
    """Return what tells the timed problems apart."""
    return f"d{problem.head_dim} {problem.mask.kind} {problem.q_len}"


def parts(traces: Sequence[kineto.Trace]) -> str:
    """Say in microseconds what the kernels of a call take, the median over ``traces``, and all of them together."""
    calls = [trace.kernels for trace in traces if trace.kernels]
    if not calls or len({tuple(kernel.name for kernel in kernels) for kernels in calls}) != 1:
        return f"no two traces alike: {[len(trace.kernels) for trace in traces]} kernels"
    took = [1e6 * statistics.median(kernel.duration_s for kernel in same) for same in zip(*calls, strict=True)]
    said = [f"{short_name(kernel.name)} {us:.0f}" for kernel, us in zip(calls[0], took, strict=True)]
    spans = [kernels[-1].start_s + kernels[-1].duration_s - kernels[0].start_s for kernels in calls]
    return f"{' + '.join(said)}; {1e6 * statistics.median(spans):.0f} us in all"


def short_name(kernel: str) -> str:
    """Return what tells a call's kernels apart: our own by their part, others by the last 24 characters of a name."""
    ours = re.search(r"ws_backward_(\w+?)_kernel", kernel)
    return ours[1] if ours else re.sub(r"^void |[<(].*", "", kernel)[-24:]


def main(arguments: list[str]) -> int:
    what, *names = arguments
    if what == "build":
        ops.load(tiled.ASYNC if names == ["tiled-async"] else tiled.WS)
        return 0
    torch._C._set_print_stack_traces_on_fatal_signal(True)  # of C++, in case of a fault that Python cannot catch
    if what in ("time", "kernels"):
        return measure(names) if what == "time" else kernel_times(names)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    if what != "check":
        return check_far() if what == "far" else check_wide()
    operator = operator_of(names[0])
    torch.use_deterministic_algorithms(True)
    wrong = check(operator, names[0])
    torch.use_deterministic_algorithms(False)
    wrong = wrong or check_graph_and_streams(operator)
    return min(wrong + (check_under_load(operator) if names == ["deterministic"] and not wrong else 0), 99)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
