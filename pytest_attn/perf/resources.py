"""What the compiled kernels of an implementation take of a multiprocessor, in the form that a run keeps."""

from __future__ import annotations

from typing import Any

from attn_impls.implementation import Implementation


def resources_of(impl: Implementation) -> dict[str, Any] | None:
    """Return ``{"missing", "kernels"}``, or ``None`` for an implementation without kernels of its own.

    ``kernels`` maps each kernel's name to its :class:`~attn_impls.implementation.Resources`; it is ``None`` where they
    cannot be told, and ``missing`` says why.
    """
    # A checkout that is gated may hold an attn_impls from before there was this attribute.
    read = getattr(impl, "resources", None)
    if read is None:
        return None
    try:
        return {"missing": None, "kernels": {str(name): dict(one) for name, one in read().items()}}
    except Exception as error:  # a stranger's function; what was measured must not be lost with it
        return unknown_resources(str(error) or type(error).__name__)


def unknown_resources(reason: str) -> dict[str, Any]:
    """Return what stands for resources that cannot be told, for ``reason``."""
    return {"missing": reason, "kernels": None}
