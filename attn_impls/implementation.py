"""What an implementation is and what it claims to do: :class:`Implementation` and :class:`Capabilities`.

Optional kernels may be missing, slow to import or broken, so nothing is imported before it is used: an
implementation is a function plus a probe that says in one sentence why it cannot run here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypedDict

from attn_impls.problem import Direction, Problem

if TYPE_CHECKING:
    import torch

AttentionFn = Callable[..., "torch.Tensor"]


class Unavailable(RuntimeError):
    """An implementation cannot run here, found only when it was used; the message is the reason.

    A failed build of an extension is the usual cause.
    """


class Resources(TypedDict):
    """What a compiled kernel takes of a multiprocessor, as plain JSON values.

    ``registers`` are those of a thread; ``local_bytes`` its local memory, which spilled registers go to;
    ``shared_bytes`` the static shared memory of a block, with what the driver reserves of it.
    """

    registers: int
    local_bytes: int
    shared_bytes: int


@dataclass(frozen=True, slots=True)
class HeadDims:
    """The head dimensions that a kernel takes: ``low <= d <= high``, in steps of ``multiple_of``."""

    low: int = 1
    high: int = 1024
    multiple_of: int = 1

    def __contains__(self, head_dim: int) -> bool:
        return self.low <= head_dim <= self.high and head_dim % self.multiple_of == 0

    def __str__(self) -> str:
        step = f" in multiples of {self.multiple_of}" if self.multiple_of > 1 else ""
        return f"{self.low}..{self.high}{step}"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an implementation claims. A case outside is not generated; a case inside that it rejects is a failure.

    Attributes:
        devices: device types, of ``"cpu"`` and ``"cuda"``.
        dtypes: of ``"fp32"``, ``"bf16"``, ``"fp16"``.
        head_dims: the head dimensions.
        masks: mask kinds, see :class:`~attn_impls.problem.Mask`.
        gqa: ``kv_heads < heads``.
        rectangular: ``q_len != kv_len``.
        empty_rows: rows with no visible key give 0 (and LSE -inf).
        softcap: ``softcap`` is honoured.
        scale: a ``scale`` other than ``1 / sqrt(head_dim)`` is honoured.
        backward: the output is differentiable by autograd.
        deterministic: two runs on the same inputs give the same bits.
        returns_lse: ``fn(q, k, v, problem, return_lse=True)`` gives ``(out, lse)``, with ``lse`` as fp32
            ``[batch, heads, q_len]`` in natural logarithm.
        traceable: ``torch.compile(fullgraph=True)`` takes a call, forward and backward, and on fake tensors it gives
            the shape, dtype and strides that it gives on real ones.
        capturable: a CUDA graph takes a call, forward and backward, and its replay computes on what the inputs then
            hold. Says nothing on other devices.
        compiles_per_shape: a new shape costs seconds of compilation, so that the suite draws fewer of them.
        min_compute_capability: of the CUDA device, e.g. ``(8, 0)``.
        also: finer rules; a function of ``(problem, device_type)`` that returns why not, or ``None``.
    """

    devices: frozenset[str] = frozenset({"cpu", "cuda"})
    dtypes: frozenset[str] = frozenset({"fp32", "bf16", "fp16"})
    head_dims: HeadDims = HeadDims()
    masks: frozenset[str] = frozenset({"full", "causal"})
    gqa: bool = False
    rectangular: bool = False
    empty_rows: bool = False
    softcap: bool = False
    scale: bool = False
    backward: bool = True
    deterministic: bool = False
    returns_lse: bool = False
    traceable: bool = False
    capturable: bool = False
    compiles_per_shape: bool = False
    min_compute_capability: tuple[int, int] | None = None
    also: Callable[[Problem, str], str | None] | None = None

    def why_not(self, problem: Problem, direction: Direction | str, device_type: str) -> str | None:
        """Return why ``problem`` in ``direction`` on ``device_type`` is outside, or ``None`` when it is inside."""
        mask = problem.mask
        empty = mask.has_empty_rows(problem.q_len, problem.kv_len)
        rules: Iterable[tuple[bool, str]] = (
            (device_type in self.devices, f"does not run on {device_type}"),
            (problem.dtype in self.dtypes, f"does not take {problem.dtype}"),
            (problem.head_dim in self.head_dims, f"takes head_dim {self.head_dims}, not {problem.head_dim}"),
            (mask.kind in self.masks, f"has no {mask.kind} mask"),
            (self.gqa or problem.kv_heads == problem.heads, "has no grouped-query attention"),
            (self.rectangular or problem.q_len == problem.kv_len, "needs q_len == kv_len"),
            (self.empty_rows or not empty, "does not define rows without a visible key"),
            (self.softcap or problem.softcap is None, "has no softcap"),
            (self.scale or problem.scale is None, "has no custom scale"),
            (self.backward or Direction(direction) is Direction.FWD, "has no backward"),
        )
        for holds, reason in rules:
            if not holds:
                return reason
        return None if self.also is None else self.also(problem, device_type)


def _always_available() -> str | None:
    return None


@functools.cache  # to find the metadata takes milliseconds, and every record asks
def _torch_version() -> str:
    return f"torch {metadata.version('torch')}"


@dataclass(frozen=True, slots=True)
class Implementation:
    """One way to compute attention.

    ``fn(q, k, v, problem)`` takes ``q`` as ``[batch, heads, q_len, head_dim]`` and ``k``, ``v`` as
    ``[batch, kv_heads, kv_len, head_dim]``, possibly as strided views, and returns ``out`` with the shape, dtype
    and device of ``q``.

    Attributes:
        name: how users and results call it.
        fn: the function.
        capabilities: what it claims.
        summary: one line for ``attn list``.
        probe: returns why it cannot run on this machine, or ``None``. Cheap: builds and compiles nothing.
        version: names the code that runs, e.g. ``"torch 2.13.0"``.
        how_to_get: what a user does when the probe says no.
        kernels: regular expression, found in the names of the kernels that do its work (on a CPU: of torch's
            operators). A timed call that spends less than ``kernels_share`` of its time in them is an error, so that a
            silent fall-back is not taken for it. Empty where nothing is claimed.
        kernels_share: least share of the time, without what only moves data. 0 asks for any kernel of that name: for
            what has the rest of its kernels, such as matrix products, in common with others.
        declared: whether the capabilities were stated; ``False`` where they were inferred from a signature.
        resources: returns what each of its compiled kernels takes, by the kernel's name; asked once it ran, raises
            :class:`Unavailable` where that cannot be told. ``None`` where it has no kernels of its own.
    """

    name: str
    fn: AttentionFn
    capabilities: Capabilities = Capabilities()
    summary: str = ""
    probe: Callable[[], str | None] = _always_available
    version: Callable[[], str] = _torch_version
    how_to_get: str = ""
    declared: bool = True
    kernels: str = ""
    kernels_share: float = 0.5
    resources: Callable[[], Mapping[str, Resources]] | None = None

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: Problem, **kwargs: Any) -> Any:
        """Call ``fn``."""
        return self.fn(q, k, v, problem, **kwargs)

    def version_or_unknown(self) -> str:
        """Return :attr:`version`'s answer, or ``"unknown"`` where a stranger's function fails to give one."""
        try:
            return str(self.version())
        except Exception:
            return "unknown"

    def advice(self, reason: str) -> str:
        """Return how to get it, or nothing where ``reason``, from :meth:`why_unavailable`, is the device itself."""
        return "" if reason.startswith("needs ") else self.how_to_get

    def why_unavailable(self, device_type: str | None = None) -> str | None:
        """Return in one sentence why it cannot run here (on ``device_type``, when given), or ``None``."""
        if device_type is not None and device_type not in self.capabilities.devices:
            return f"needs {' or '.join(sorted(self.capabilities.devices))}"
        reason = self.probe()
        if reason is None and device_type == "cuda":
            reason = _why_too_old(self.capabilities.min_compute_capability)
        return reason


def _why_too_old(needed: tuple[int, int] | None) -> str | None:
    if needed is None:
        return None
    import torch

    have = torch.cuda.get_device_capability()
    if have >= needed:
        return None
    return f"needs compute capability {needed[0]}.{needed[1]}, this device has {have[0]}.{have[1]}"


def implementation(
    name: str,
    *,
    capabilities: Capabilities = Capabilities(),
    probe: Callable[[], str | None] = _always_available,
    version: Callable[[], str] = _torch_version,
    how_to_get: str = "",
    kernels: str = "",
    kernels_share: float = 0.5,
) -> Callable[[AttentionFn], Implementation]:
    """Turn ``fn(q, k, v, problem)`` into an :class:`Implementation`; its docstring's first line is the summary."""

    def wrap(fn: AttentionFn) -> Implementation:
        summary = (inspect.getdoc(fn) or "").partition("\n")[0]
        return Implementation(
            name,
            fn,
            capabilities,
            summary,
            probe,
            version,
            how_to_get,
            kernels=kernels,
            kernels_share=kernels_share,
        )

    return wrap
