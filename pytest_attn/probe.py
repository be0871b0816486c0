"""Asking an implementation whether it can run here, where the answer of a stranger's probe may be an exception."""

from __future__ import annotations

from attn_impls.implementation import Implementation


def state_of(impl: Implementation, device_type: str | None) -> tuple[str, str | None]:
    """Return ``("available", None)``, ``("missing", reason)``, or ``("broken", why)`` when its probe raises."""
    try:
        reason = impl.why_unavailable(device_type)
    except Exception as error:
        return "broken", f"its probe raised {type(error).__name__}: {error}"
    return ("available", None) if reason is None else ("missing", reason)


def why_missing(impl: Implementation, device_type: str) -> str | None:
    """Return in one sentence why ``impl`` cannot run on ``device_type``, or ``None``; that its probe raised is one."""
    return state_of(impl, device_type)[1]
