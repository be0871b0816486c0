"""Memory on a CPU: the peak by formula, and what autograd keeps for the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attn_impls import as_implementation
from attn_impls.naive import naive
from attn_impls.problem import FULL, Direction, Problem
from attn_impls.sdpa import sdpa_flash
from pytest_attn.correctness.case import Case, make_tensors
from pytest_attn.perf.measure import measure
from pytest_attn.perf.memory import SavedBytes, nbytes, peak_bytes
from pytest_attn.perf.passes import memory_of
from tests.tool.quick import CPU, QUICK

LONG = Problem(1, 2, 2, 512, 512, 16, "fp32", FULL)
SCORES = 2 * 512 * 512 * 4
INPUT = 2 * 512 * 16 * 4


@pytest.mark.parametrize("direction", Direction)
def test_peak_memory_of_naive_is_its_score_matrix_and_fused_has_none(direction: Direction) -> None:
    plain, fused = (measure(impl, LONG, direction, CPU, QUICK).memory for impl in (naive, sdpa_flash))
    assert plain is not None
    assert fused is not None
    # The product and its scaled copy, or the scores and their softmax, lie side by side.
    matrices = 2 if direction is Direction.FWD else 3
    assert (matrices - 1) * SCORES + INPUT <= plain.peak_bytes <= matrices * SCORES + 12 * INPUT
    assert fused.peak_bytes < 0.5 * plain.peak_bytes
    outputs = {Direction.FWD: 1, Direction.BWD: 3, Direction.FWD_BWD: 4}[direction]
    assert plain.workspace_bytes == plain.peak_bytes - outputs * INPUT


def test_forward_peak_is_two_score_matrices_to_the_byte() -> None:
    memory = measure(naive, LONG, Direction.FWD, CPU, QUICK).memory
    assert memory is not None
    assert 2 * SCORES <= memory.peak_bytes <= 2 * SCORES + 4 * INPUT


def test_saved_bytes() -> None:
    plain, fused = (measure(impl, LONG, Direction.BWD, CPU, QUICK).memory for impl in (naive, sdpa_flash))
    assert plain is not None
    assert plain.saved_bytes is not None
    assert fused is not None
    assert fused.saved_bytes is not None
    assert SCORES <= plain.saved_bytes <= SCORES + 4 * INPUT  # the weights
    assert INPUT <= fused.saved_bytes <= 3 * INPUT  # out and the LSE


def test_saved_bytes_count_a_storage_once_and_no_input() -> None:
    x = torch.ones(10, requires_grad=True)
    saved = SavedBytes([x])
    with saved:
        y = x.exp()  # keeps y
        z = y.tanh() * y  # keeps z's tanh, and y again
        (x * x).sum()  # keeps only x
    assert saved.total == 2 * nbytes([y])
    z.sum().backward()  # what was counted was left as it was
    assert x.grad is not None


def test_peak_counts_what_was_there_before_the_measured_step() -> None:
    kept: list[torch.Tensor] = []

    def before() -> None:
        kept.append(torch.empty(1000, dtype=torch.uint8))
        torch.empty(50_000, dtype=torch.uint8)  # given back before the measured step

    def step() -> torch.Tensor:
        torch.empty(6000, dtype=torch.uint8)
        return torch.empty(2000, dtype=torch.uint8)

    assert peak_bytes(before, step, CPU) == pytest.approx(1000 + 6000, abs=256)
    assert peak_bytes(lambda: None, lambda: None, CPU) == 0


class CachingAllocator:
    """What CUDA's does: a request gets a cached block that is large enough, whole, and that block is what counts."""

    def __init__(self) -> None:
        self.cached: list[int] = []
        self.allocated = self.peak = 0

    def allocate(self, size: int) -> int:
        block = min((block for block in self.cached if block >= size), default=size)
        if block in self.cached:
            self.cached.remove(block)
        self.allocated += block
        self.peak = max(self.peak, self.allocated)
        return block

    def free(self, block: int) -> None:
        self.allocated -= block
        self.cached.append(block)

    def reset(self, device: object) -> None:
        self.peak = self.allocated

    def use(self, *sizes: int) -> None:
        for block in [self.allocate(size) for size in sizes]:
            self.free(block)


def test_what_ran_before_does_not_count_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = CachingAllocator()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", cuda.cached.clear)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: cuda.allocated)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", cuda.reset)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: cuda.peak)
    cuda.allocate(500)  # the inputs
    cuda.use(9000)  # another implementation, whose blocks would serve this one's requests
    peak = peak_bytes(lambda: cuda.allocate(20), lambda: cuda.use(1000, 3000), torch.device("cuda"))
    assert peak == 20 + 1000 + 3000


def test_a_backward_pass_does_not_answer_for_the_memory_of_the_forward() -> None:
    problem = Problem(1, 1, 1, 64, 64, 16, "fp32", FULL)
    large = 4 * 2**22

    def attention(q: Any, k: Any, v: Any, problem: Problem) -> torch.Tensor:
        torch.zeros(2**22)
        return naive(q, k, v, problem)

    impl, tensors = as_implementation(attention, "mine"), make_tensors(Case(problem), CPU)
    peaks = {d: memory_of(impl, problem, tensors, d, CPU, 0)[0].peak_bytes for d in Direction}
    assert peaks[Direction.BWD] < large <= min(peaks[Direction.FWD], peaks[Direction.FWD_BWD])
