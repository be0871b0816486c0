"""Planted faults: right kernels with one step gone wrong, which the suite must catch. ``FAULTS`` holds them by name."""

from __future__ import annotations

from attn_impls import Implementation
from tests.tool.faults import backward, masks, memory, numerics
from tests.tool.faults.kernel import Kernel, implementation_of

RIGHT = implementation_of(Kernel, "the right kernel")

FAULTS: dict[str, Implementation] = {
    name: implementation_of(kind, name)
    for module in (masks, numerics, memory, backward)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Kernel) and (name := getattr(kind, "name", None)) is not None
}
