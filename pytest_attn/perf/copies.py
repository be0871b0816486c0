"""Attention from host memory and back: what the copies cost, flat or pitched, on one stream or on several.

An implementation is wrapped into one that takes pinned host tensors, so that everything that measures and judges can
stay as it is: queries, keys and values go to the device, the implementation runs, its output comes back. With several
streams each takes a part of the batch, so that the copies of one part run beside the kernels of another.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import torch

from attn_impls.implementation import Implementation, Unavailable
from attn_impls.problem import Problem
from pytest_attn.correctness.case import DTYPES, Tensors
from pytest_attn.perf.inputs import Inputs

# Bytes between rows where cudaMallocPitch pads them, on every device since compute capability 2.0.
PITCH = 512


@dataclass(frozen=True, slots=True)
class Copies:
    """How inputs get to the device.

    ``layout`` is ``"flat"``, one copy a tensor into rows without gaps, or ``"pitched"``, one 2D copy into rows that
    begin at multiples of :data:`PITCH` bytes, which the kernel then reads with that stride. ``streams`` is how many
    parts the batch is cut into.
    """

    layout: str
    streams: int

    @property
    def id(self) -> str:
        """E.g. ``copies-flat-1stream``."""
        return f"copies-{self.layout}-{self.streams}stream"


COPIES = {copies.id: copies for layout in ("flat", "pitched") for copies in (Copies(layout, 1), Copies(layout, 4))}


class HostInputs(Inputs):
    """The inputs in pinned host memory, from which copies to ``device`` need not wait for the host."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        """Draw them on the CPU."""
        super().__init__(problem, torch.device("cpu"))
        if device.type == "cuda":
            kept = self.tensors
            self.tensors = Tensors(*(x.pin_memory() for x in (kept.q, kept.k, kept.v, kept.dout)))
            self.watch()


def end_to_end(impl: Implementation, copies: Copies, problem: Problem, device: torch.device) -> Implementation:
    """Return ``impl`` on pinned host tensors of ``problem``, named ``<impl>+<copies>``, forward.

    Its first call makes the buffers on the device, and one on the host for the result, which all calls share: no later
    call allocates what it copies to.

    Raises :class:`~attn_impls.Unavailable` for pitched copies without the package cuda-bindings.
    """
    if copies.layout == "pitched":
        try:
            from cuda.bindings import runtime  # noqa: F401 - only whether it is there
        except ImportError:
            raise Unavailable("pitched copies need the package cuda-bindings, which PyTorch for CUDA brings") from None
    return dataclasses.replace(impl, name=f"{impl.name}+{copies.id}", fn=_EndToEnd(impl, copies, problem, device))


class _EndToEnd:
    """The function of :func:`end_to_end`'s implementation."""

    def __init__(self, impl: Implementation, copies: Copies, problem: Problem, device: torch.device) -> None:
        self._impl = impl
        self._copies = copies
        self._problem = problem
        self._device = device
        self._parts: list[_Part] = []
        self._out: torch.Tensor | None = None

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem) -> torch.Tensor:
        if self._out is None:
            self._out = self._make_buffers()
        current = torch.cuda.current_stream(self._device)
        for part in self._parts:
            if part.stream is None:
                part.run(q, k, v, self._out, current)
                continue
            part.stream.wait_stream(current)
            with torch.cuda.stream(part.stream):
                part.run(q, k, v, self._out, part.stream)
        for part in self._parts:
            if part.stream is not None:
                current.wait_stream(part.stream)
        return self._out

    def _make_buffers(self) -> torch.Tensor:
        problem, copies = self._problem, self._copies
        self._parts = [
            _Part(self._impl, dataclasses.replace(problem, batch=b - a), slice(a, b), copies, self._device)
            for a, b in _cut(problem.batch, copies.streams)
        ]
        on_host, pin = torch.device("cpu"), self._device.type == "cuda"
        return _empty(problem, problem.heads, problem.q_len, problem.head_dim, on_host, pin)


class _Part:
    """A part of the batch: its buffers on the device and its stream, ``None`` for the caller's."""

    def __init__(
        self, impl: Implementation, problem: Problem, where: slice, copies: Copies, device: torch.device
    ) -> None:
        self._impl = impl
        self._problem = problem
        self._where = where
        self._pitched = copies.layout == "pitched"
        self.stream = torch.cuda.Stream(device) if copies.streams > 1 else None
        itemsize = DTYPES[problem.dtype].itemsize
        row_bytes = problem.head_dim * itemsize
        pitch = (-(-row_bytes // PITCH) * PITCH if self._pitched else row_bytes) // itemsize
        self._q = _empty(problem, problem.heads, problem.q_len, pitch, device)
        self._k = _empty(problem, problem.kv_heads, problem.kv_len, pitch, device)
        self._v = _empty(problem, problem.kv_heads, problem.kv_len, pitch, device)
        self._out = _empty(problem, problem.heads, problem.q_len, problem.head_dim, device)

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, stream: Any) -> None:
        """Queue copies in, the implementation and the copy out on ``stream``, which is the current one."""
        for to, whole in ((self._q, q), (self._k, k), (self._v, v)):
            host = whole[self._where]
            if self._pitched:
                copy_rows(to, host, stream)
            else:
                to.copy_(host, non_blocking=True)
        result = self._impl(self._q, self._k, self._v, self._problem)
        if not _same_order(result, self._out):  # put in order on the device; the host would have to wait for it
            result = self._out.copy_(result)
        out[self._where].copy_(result, non_blocking=True)


def copy_rows(to: torch.Tensor, host: torch.Tensor, stream: Any) -> None:
    """Queue one 2D copy of ``host``, whose rows lie without gaps, to ``to``, whose rows are all equally far apart.

    Raises ``RuntimeError`` with CUDA's name for what went wrong.
    """
    from cuda.bindings import runtime

    row = host.shape[-1] * host.element_size()
    (status,) = runtime.cudaMemcpy2DAsync(
        to.data_ptr(),
        min(to.stride()[1:3]) * to.element_size(),
        host.data_ptr(),
        row,
        row,
        host.numel() // host.shape[-1],
        runtime.cudaMemcpyKind.cudaMemcpyHostToDevice,
        stream.cuda_stream,
    )
    if status != runtime.cudaError_t.cudaSuccess:
        raise RuntimeError(f"cudaMemcpy2DAsync: {status.name}")


def _cut(batch: int, parts: int) -> list[tuple[int, int]]:
    """Cut ``batch`` into at most ``parts`` intervals, none empty, whose lengths differ by one at most."""
    edges = [batch * i // parts for i in range(parts + 1)]
    return [(a, b) for a, b in itertools.pairwise(edges) if a < b]


def _same_order(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether two tensors of one shape lie alike in memory; the stride of a dimension of size 1 says nothing."""
    return all(a == b for a, b, size in zip(one.stride(), other.stride(), one.shape, strict=True) if size > 1)


def _empty(
    problem: Problem, heads: int, rows: int, pitch: int, device: torch.device, pin: bool = False
) -> torch.Tensor:
    """Return ``[batch, heads, rows, head_dim]`` in the problem's layout, rows ``pitch`` elements apart in memory."""
    order = (rows, heads) if problem.layout == "bshd" else (heads, rows)
    memory = torch.empty(problem.batch, *order, pitch, dtype=DTYPES[problem.dtype], device=device, pin_memory=pin)
    view = memory[..., : problem.head_dim]
    return view.transpose(1, 2) if problem.layout == "bshd" else view
