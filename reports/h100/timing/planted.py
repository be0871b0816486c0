"""What must not be a number: a host-bound call, fall-backs, out of memory. Prints each status and reason."""

from __future__ import annotations

import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from attn_impls import Direction, Implementation, Problem, discover
from attn_impls.problem import CAUSAL, FULL
from pytest_attn.perf.contract import contract_for
from pytest_attn.perf.instruments import Instruments
from pytest_attn.perf.measure import measure_alone
from pytest_attn.perf.record import Record

DEVICE = torch.device("cuda", 0)
SMALL = Problem(2, 16, 16, 512, 512, 64, "bf16", FULL)


def waits_for_the_host(q, k, v, problem):  # type: ignore[no-untyped-def]
    out = scaled_dot_product_attention(q, k, v, scale=problem.softmax_scale)
    out.flatten()[0].item()
    return out


def many_launches(q, k, v, problem):  # type: ignore[no-untyped-def]
    out = scaled_dot_product_attention(q, k, v, scale=problem.softmax_scale)
    for _ in range(3000):
        out[0, 0, 0, :1].mul_(1)
    return out


def sdpa_says_it_is_flash(q, k, v, problem):  # type: ignore[no-untyped-def]
    return scaled_dot_product_attention(q, k, v, is_causal=problem.mask.kind == "causal", scale=problem.softmax_scale)


compiled = torch.compile(flex_attention, dynamic=False)


def flex_that_falls_back(q, k, v, problem):  # type: ignore[no-untyped-def]
    return compiled(q, k, v, scale=problem.softmax_scale)


def main() -> None:
    torch.cuda.set_device(DEVICE)
    instruments = Instruments(DEVICE, contract_for("events", "cuda"))

    def show(what: str, impl: Implementation, problem: Problem, direction: Direction = Direction.FWD) -> Record:
        record = measure_alone(impl, problem, direction, instruments).record
        time = "" if record.time_s is None else f"{1e6 * record.time_s.median:.1f} µs"
        print(f"{what}: {record.status} {time} {record.reason or record.note or ''}", flush=True)
        return record

    flash = discover().resolve("sdpa-flash")
    show("sdpa-flash as it is", flash, SMALL)
    show("a call that waits for its own result", Implementation("waits", waits_for_the_host), SMALL)
    show("a call of 3000 launches", Implementation("launches", many_launches), SMALL)
    fp32 = Problem(2, 16, 16, 512, 512, 64, "fp32", FULL)
    unpinned = Implementation("unpinned", sdpa_says_it_is_flash, kernels=flash.kernels)
    show("SDPA, unpinned, declared as flash, in fp32", unpinned, fp32)
    show("SDPA, unpinned, declared as flash, in bf16", unpinned, SMALL)
    show("sdpa-flash in fp32, outside its capabilities", flash, fp32)
    flex = Implementation("flex", flex_that_falls_back, kernels=discover().resolve("flex").kernels)
    torch._dynamo.config.recompile_limit = 2
    for length in (128, 256, 384):
        problem = Problem(1, 2, 2, length, length, 64, "bf16", FULL)
        show(f"flex, compiled for at most 2 shapes, length {length}", flex, problem)
    naive = discover().resolve("naive")
    show("naive at 65536", naive, Problem(1, 32, 32, 65536, 65536, 64, "bf16", CAUSAL))
    show("naive at 16384, after it", naive, Problem(1, 4, 4, 16384, 16384, 64, "bf16", CAUSAL))


if __name__ == "__main__":
    main()
