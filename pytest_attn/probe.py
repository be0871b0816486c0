"""Asking an implementation whether it can run here, where the answer of a stranger's probe may be an exception."""

from __future__ import annotations

from attn_impls.implementation import Implementation


def why_missing(impl: Implementation, device_type: str) -> str | None:
    """Return in one sentence why ``impl`` cannot run on ``device_type``, or ``None``; that its probe raised is one."""
    try:
        return impl.why_unavailable(device_type)
    except Exception as error:
        return f"its probe raised {type(error).__name__}: {error}"
