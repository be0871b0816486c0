"""Our compiled kernels as torch operators: ``attn_tiled::seq_*``, ``attn_tiled::cpu_*``, and one for each CUDA rung.

The operators and their checks live in C++ (see ``csrc``). Here they get what only Python can give them: the shapes of
their results for ``torch.compile`` (fake kernels) and their derivatives (autograd).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from attn_impls.problem import Mask
from attn_impls.tiled import build

_INT64 = torch.iinfo(torch.int64)
# As csrc defines them.
_FORWARD_SCHEMA = "(Tensor q, Tensor k, Tensor v, float scale, int low, int high) -> (Tensor out, Tensor lse)"
_BACKWARD_SCHEMA = (
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? dlse, float scale, int low, int high)"
    " -> (Tensor dq, Tensor dk, Tensor dv)"
)
Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Family:
    """The operators of one kernel: ``attn_tiled::<name>_forward`` and, where it has one, ``..._backward``.

    ``forward(q, k, v, scale, low, high) -> (out, lse)``, with ``q`` ``[B, H, Q, D]``, ``k`` and ``v``
    ``[B, Hkv, K, D]``, ``lse`` fp32 ``[B, H, Q]`` in natural logarithm, and the mask as diagonals (:func:`diagonals`).
    ``backward(dout, q, k, v, out, lse, dlse, scale, low, high) -> (dq, dk, dv)``, with ``dlse`` ``None`` where only
    ``out`` was used. Where ``deterministic_backward`` is set, ``..._backward_deterministic`` takes the same, gives the
    same bits in every run, and is used while ``torch.use_deterministic_algorithms`` is on.

    The backward operators are those of ``backward_of`` where that is set, of the same extension. Heads wider than
    ``widest_backward`` are given to those of ``wider``, a family with a library of its own.
    """

    name: str
    extension: build.Extension
    backward: bool
    deterministic_backward: bool = False
    backward_of: str = ""
    widest_backward: int | None = None
    wider: Family | None = None

    @property
    def backward_names(self) -> tuple[str, ...]:
        """The backward operators, the one that is used by default first."""
        name = f"{self.backward_of or self.name}_backward"
        deterministic = (f"{name}_deterministic",) if self.deterministic_backward else ()
        return (name, *deterministic) if self.backward else ()

    def differentiates(self, head_dim: int) -> Family:
        """Return the family whose backward operators take heads of ``head_dim``: itself, or ``wider``."""
        too_wide = self.widest_backward is not None and head_dim > self.widest_backward
        return self if self.wider is None or not too_wide else self.wider


_forwards: dict[str, Any] = {}  # by name, those that are ready to be called
_faked: set[str] = set()  # backward operators, which families may share


def diagonals(mask: Mask, q_len: int, kv_len: int) -> tuple[int, int]:
    """Return the mask's diagonals as the operators take them: 64-bit integers, whose ends mean unbounded."""
    low, high = mask.diagonals(q_len, kv_len)
    return (
        _INT64.min if low is None else max(low, _INT64.min),
        _INT64.max if high is None else min(high, _INT64.max),
    )


def load(family: Family) -> None:
    """Build and load the operators of ``family`` and register their fake kernels and derivatives, once a process.

    Raises :class:`~attn_impls.implementation.Unavailable` when the build fails.
    """
    if is_registered(family.name):
        return
    build.load(family.extension)

    def backward_names(head_dim: int) -> Sequence[str]:
        serving = family.differentiates(head_dim)
        load(serving)
        return serving.backward_names

    _register(family.name, family.backward_names, backward_names)


def is_registered(name: str) -> bool:
    """Tell whether the operators ``attn_tiled::<name>_*`` are ready to be called."""
    return name in _forwards


def define(name: str, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
    """Define ``attn_tiled::<name>_forward`` and ``..._backward`` by functions on real tensors, as :class:`Family` says.

    To be called once a process and name.
    """
    for operator, schema, function in (
        (f"attn_tiled::{name}_forward", _FORWARD_SCHEMA, forward),
        (f"attn_tiled::{name}_backward", _BACKWARD_SCHEMA, backward),
    ):
        torch.library.define(operator, schema)
        torch.library.impl(operator, ("cpu", "cuda"), function)
    _register(name, (f"{name}_backward",), lambda head_dim: (f"{name}_backward",))


def _register(name: str, backward_names: Sequence[str], names_for: Callable[[int], Sequence[str]]) -> None:
    """Register what the operators of ``name`` lack; those of ``names_for(head_dim)`` differentiate the forward."""
    torch.library.register_fake(f"attn_tiled::{name}_forward", _fake_forward)
    for backward in backward_names:
        if backward not in _faked:
            torch.library.register_fake(f"attn_tiled::{backward}", _fake_backward)
            _faked.add(backward)
    if backward_names:
        torch.library.register_autograd(
            f"attn_tiled::{name}_forward", _differentiate(names_for), setup_context=_setup_context
        )
    _forwards[name] = getattr(torch.ops.attn_tiled, f"{name}_forward").default


def attention(
    family: Family, q: Tensor, k: Tensor, v: Tensor, scale: float, low: int, high: int
) -> tuple[Tensor, Tensor]:
    """Return ``(out, lse)`` from the forward operator, differentiable in both where the family has a backward.

    Raises ``RuntimeError`` for shapes, dtypes or devices that the kernel does not take, before any work.
    """
    load(family)
    return call(family.name, q, k, v, scale, low, high)


def call(name: str, q: Tensor, k: Tensor, v: Tensor, scale: float, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Return ``(out, lse)`` from the operator ``attn_tiled::<name>_forward``, which is loaded or defined already."""
    forward = _forwards[name]
    q, k, v = _last_contiguous(q), _last_contiguous(k), _last_contiguous(v)
    if _needs_autograd(q, k, v):
        out, lse = forward(q, k, v, scale, low, high)
    else:
        with torch._C._AutoDispatchBelowAutograd():  # past our derivative, which takes longer than all the rest
            out, lse = forward(q, k, v, scale, low, high)
    return out, lse


def _needs_autograd(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Tell whether somebody could ask for the derivative, or traces the call or transforms it (``torch.func``)."""
    return (
        (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad))
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
    )


def _last_contiguous(x: Tensor) -> Tensor:
    """Copy ``x`` only when its last dimension is not contiguous, which the kernels need."""
    return x if x.dim() == 0 or x.stride(-1) == 1 or x.size(-1) == 1 else x.contiguous()


def empty_in_order_of(like: Tensor) -> Tensor:
    """The twin of ``empty_in_order_of`` in ``csrc/arguments.h``: a bshd view gives a bshd view."""
    if like.stride(1) < like.stride(2):
        return like.new_empty([like.shape[i] for i in (0, 2, 1, 3)]).transpose(1, 2)
    return like.new_empty(like.shape)


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, scale: float, low: int, high: int) -> tuple[Tensor, Tensor]:
    return empty_in_order_of(q), q.new_empty(q.shape[:3], dtype=torch.float32)


def _fake_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    dlse: Tensor | None,
    scale: float,
    low: int,
    high: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_in_order_of(q), empty_in_order_of(k), empty_in_order_of(v)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.scale, ctx.low, ctx.high = inputs
    ctx.set_materialize_grads(False)  # so that an unused lse costs nothing in the backward pass
    ctx.save_for_backward(q, k, v, *output)


def _differentiate(names_for: Callable[[int], Sequence[str]]) -> Any:
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        if dout is None and dlse is None:
            return (None,) * 6
        dout = torch.zeros_like(out) if dout is None else _last_contiguous(dout)
        dlse = None if dlse is None else dlse.contiguous()
        wanted = -1 if torch.are_deterministic_algorithms_enabled() else 0
        operator = getattr(torch.ops.attn_tiled, names_for(q.shape[-1])[wanted])
        grads = operator(dout, q, k, v, out, lse, dlse, ctx.scale, ctx.low, ctx.high)
        return (*grads, None, None, None)

    return backward
