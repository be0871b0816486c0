"""Torch's process-wide settings, which an implementation must leave as it found them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_PER_BACKEND = "set per backend"


def _matmul_precision() -> str:
    """Return torch's one word for all backends; it raises where a backend was set to something else."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return _PER_BACKEND


def _set_matmul_precision(value: str) -> None:
    if value != _PER_BACKEND:
        torch.set_float32_matmul_precision(value)


def _fp32_precision(owner: Any) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    return (lambda: owner.fp32_precision), (lambda value: setattr(owner, "fp32_precision", value))


_mkldnn: Any = torch.backends.mkldnn  # its matmul is missing in torch's annotations

# The wider stands before the narrower: to set it sets those, or shows through where they are not set. To set the one of
# all of mkldnn sets torch's.
_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "matmul precision": (_matmul_precision, _set_matmul_precision),
    "fp32 precision": _fp32_precision(torch.backends),
    "fp32 precision on CUDA": _fp32_precision(torch.backends.cudnn),
    "matmul precision on CUDA": _fp32_precision(torch.backends.cuda.matmul),
    "matmul precision on a CPU": _fp32_precision(_mkldnn.matmul),
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
