"""A :class:`Case` is a problem, a regime and a seed.

Tensors are always made from one, never from the global generator, so that whatever happened can be repeated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from attn_impls.problem import Problem
from pytest_attn.correctness.regimes import REGIMES, Draws
from pytest_attn.correctness.storage import storage_of, store

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Case:
    """What to compute (``problem``), on which kind of values (``regime``), from which seed.

    The seed also says how the tensors lie in memory, see :mod:`pytest_attn.correctness.storage`; from 0, densely.
    """

    problem: Problem
    regime: str = "normal"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.regime not in REGIMES:
            raise ValueError(f"regime {self.regime!r} is not one of {', '.join(REGIMES)}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed!r} is not a whole number from 0")

    @property
    def id(self) -> str:
        """The problem's id, the regime and the seed."""
        return f"{self.problem.id}/{self.regime}/{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, defaults left out, so that a command line that carries them stays short."""
        problem = {
            field.name: value
            for field in dataclasses.fields(Problem)
            if (value := getattr(self.problem, field.name)) != field.default
        }
        if "mask" in problem:
            mask = self.problem.mask
            problem["mask"] = mask.kind if mask.kind != "window" else dataclasses.asdict(mask)
        return {"problem": problem, "regime": self.regime, "seed": self.seed}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Case:
        """Read :meth:`to_dict`'s form. Raises ``ValueError`` with one sentence when it does not fit."""
        unknown = sorted(set(data) - {"problem", "regime", "seed"})
        if unknown or not isinstance(data.get("problem"), Mapping):
            raise ValueError(
                f"a case needs a problem, and may have regime and seed, not {', '.join(unknown) or 'this'}"
            )
        return cls(Problem.from_dict(data["problem"]), str(data.get("regime", "normal")), data.get("seed", 0))


@dataclass(frozen=True, slots=True, eq=False)
class Tensors:
    """The inputs of a case: ``q, dout [b, h, q_len, d]``, ``k, v [b, kv_h, kv_len, d]``, in the problem's layout."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dout: torch.Tensor

    def kept(self) -> Tensors:
        """Return a copy that nobody else holds, with all of the memory that each tensor is a view of."""
        return Tensors(*(_copied_with_memory(tensor) for tensor in (self.q, self.k, self.v, self.dout)))

    def to(self, device: torch.device) -> Tensors:
        """Return the same values on ``device``."""
        return Tensors(*(tensor.to(device) for tensor in (self.q, self.k, self.v, self.dout)))

    def changed_since(self, kept: Tensors) -> str | None:
        """Return what is no longer as it was in :meth:`kept`, an input or the memory around one, or ``None``."""
        pairs = {name: (getattr(self, name), getattr(kept, name)) for name in ("q", "k", "v", "dout")}
        # Inputs may share a storage: a change in one of them shows in the memory of all.
        touched = [name for name, (now, before) in pairs.items() if not torch.equal(_memory(now), _memory(before))]
        for name in touched:
            if not torch.equal(*pairs[name]):
                return f"its input {name}"
        return f"the memory around its input {touched[0]}" if touched else None

    def requires_grad(self) -> Tensors:
        """Return the same values as fresh leaves that autograd follows (``dout`` stays as it is)."""
        q, k, v = (tensor.detach().requires_grad_() for tensor in (self.q, self.k, self.v))
        return Tensors(q, k, v, self.dout)


def _memory(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of the whole storage of ``tensor``."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _copied_with_memory(tensor: torch.Tensor) -> torch.Tensor:
    copy = _memory(tensor).clone().untyped_storage()
    return tensor.new_empty(0).set_(copy, tensor.storage_offset(), tensor.shape, tensor.stride())


def make_tensors(case: Case, device: torch.device, *, draw_on: torch.device | None = None) -> Tensors:
    """Draw the inputs of ``case``.

    Args:
        case: what to draw.
        device: where the tensors end up.
        draw_on: where the random numbers are drawn; by default on the CPU, which gives the same values whatever the
            device, so that a failure on a GPU can be repeated anywhere. Large timed problems draw on the device.

    Returns:
        The inputs, each rounded once from float32 to the problem's dtype.
    """
    problem = case.problem
    draw_on = draw_on or torch.device("cpu")
    generator = torch.Generator(draw_on).manual_seed(case.seed)

    def draw(heads: int, length: int) -> torch.Tensor:
        shape = (problem.batch, heads, length, problem.head_dim)
        return torch.randn(shape, generator=generator, device=draw_on)

    q = draw(problem.heads, problem.q_len)
    k = draw(problem.kv_heads, problem.kv_len)
    v = draw(problem.kv_heads, problem.kv_len)
    dout = draw(problem.heads, problem.q_len)
    REGIMES[case.regime](Draws(q, k, v, dout, DTYPES[problem.dtype]))
    rounded = (tensor.to(device=device, dtype=DTYPES[problem.dtype]) for tensor in (q, k, v, dout))
    return Tensors(*store(storage_of(case.seed), problem.layout, *rounded))
