"""What options name, looked up on behalf of a user, whose mistakes become sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_attn.commands.errors import UserError
from pytest_attn.probe import why_missing

if TYPE_CHECKING:
    import torch

    from attn_impls import Implementation, Problem


def problems_of(grid: str) -> list[Problem]:
    """Return the problems of a named grid or a TOML file; raises :class:`UserError` for what is neither."""
    from attn_impls.grids import UnknownGrid, load_grid

    try:
        return load_grid(grid)
    except UnknownGrid as error:
        raise UserError(str(error)) from None


def device_of(name: str) -> torch.device:
    """Return the device that ``name`` asks for; raises :class:`UserError` where there is none."""
    from pytest_attn.perf.device import pick_device

    try:
        return pick_device(name)
    except ValueError as error:
        raise UserError(str(error)) from None


def check_usable(name: str, implementation: Implementation, device_type: str) -> None:
    """Raise :class:`UserError`, with how to get it, where ``implementation`` cannot run on ``device_type``."""
    reason = why_missing(implementation, device_type)
    if reason is not None:
        advice = implementation.advice(reason)
        raise UserError(f"{name} cannot run on {device_type}: {reason}{f'; get it: {advice}' if advice else ''}")
