"""Torch's process-wide settings, which an implementation must leave as it found them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "deterministic mode": (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
}


class Settings:
    """The settings at one moment."""

    def __init__(self) -> None:
        self._found = {name: read() for name, (read, _) in _SETTINGS.items()}

    def put_back(self) -> str | None:
        """Undo changes and return what the first one was, or ``None``."""
        change = None
        for name, (read, write) in _SETTINGS.items():
            now, then = read(), self._found[name]
            if now != then:
                write(then)
                change = change or f"{name} from {then} to {now}"
        return change
