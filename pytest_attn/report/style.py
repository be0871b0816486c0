"""How an implementation looks: one colour, one marker and one dash for each name, the same in every figure and run.

The look depends on the name alone, never on what else a run holds, so that two reports can lie side by side. Colours
are Okabe and Ito's (https://jfly.uni-koeln.de/color/) and, where those are used up, Paul Tol's; markers and dashes
repeat what colour says, for readers and printers that do not see it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

BASELINE = "naive"


@dataclass(frozen=True, slots=True)
class Look:
    """How a series is drawn: ``light`` and ``dark`` are its colours on a white and on a dark page."""

    light: str
    dark: str
    marker: str
    dash: str | tuple[int, tuple[float, ...]]


_SOLID, _DASHED, _DOTTED = "-", (0, (5.0, 2.0)), (0, (1.5, 1.5))
_DASHDOT = (0, (6.0, 1.6, 1.4, 1.6))

# Grey is the baseline's alone: everything is read against it.
_KNOWN: dict[str, Look] = {
    BASELINE: Look("#6f6f6f", "#a8a8a8", "o", _SOLID),
    "sdpa-math": Look("#cc79a7", "#dd8fb9", "s", _DASHED),
    "sdpa-flash": Look("#0072b2", "#4aa8e0", "^", _SOLID),
    "sdpa-efficient": Look("#4ba3d3", "#8ccbf0", "D", _DASHDOT),
    "sdpa-cudnn": Look("#009e73", "#2fc79b", "v", _SOLID),
    "flash-attn": Look("#d55e00", "#f07c28", "<", _SOLID),
    "flash-attn-4": Look("#e69f00", "#f3b63a", "*", _DASHED),
    "flex": Look("#882255", "#d0669c", "P", _DASHED),
    "triton": Look("#332288", "#9387ea", ">", _DASHDOT),
    "tiled-seq": Look("#999933", "#bdbd52", "s", _DOTTED),
    "tiled-cpu": Look("#117733", "#4db56d", "D", _SOLID),
    "tiled-torch": Look("#aa4499", "#d877c8", "h", _DASHED),
    "tiled-global": Look("#7a5c3e", "#b8946f", "X", _DOTTED),
    "tiled-smem": Look("#c03545", "#ee7281", "p", _SOLID),
    "tiled-pad": Look("#b0306e", "#e272a8", "d", _DASHED),
    "tiled-coalesced": Look("#5b7f2b", "#93bd5c", "H", _DASHDOT),
    "tiled-unroll": Look("#8a6d00", "#cdb04a", "8", _DOTTED),
    "tiled-regs": Look("#2a7f78", "#5fbdb5", "p", _DASHED),
    "tiled-mma": Look("#4f5d95", "#8f9dd6", "P", _SOLID),
    "tiled-async": Look("#7a4fb0", "#b08ae0", "X", _SOLID),
    "tiled-wgmma": Look("#1b6f8f", "#5cb8d9", "^", _DASHDOT),
    "tiled-ws": Look("#a65a2a", "#d98f5f", "v", _DASHED),
    "tiled-overlap": Look("#b23a48", "#e58a94", "<", _DASHDOT),
    "tiled-hopper": Look("#14746f", "#56c3bb", ">", _SOLID),
}

_SPARE_COLOURS = (
    ("#1b6f8f", "#5cb8d9"),
    ("#a65a2a", "#d98f5f"),
    ("#5b7f2b", "#93bd5c"),
    ("#7a4fb0", "#b08ae0"),
    ("#b0306e", "#e272a8"),
    ("#2a7f78", "#5fbdb5"),
    ("#8a6d00", "#cdb04a"),
    ("#4f5d95", "#8f9dd6"),
)
_SPARE_MARKERS = ("o", "s", "^", "D", "v", "p", "h", "<", ">")
_SPARE_DASHES = (_SOLID, _DASHED, _DASHDOT, _DOTTED)


def look(impl: str) -> Look:
    """Return the look of the implementation called ``impl``; a name not known here gets one from its hash."""
    if impl in _KNOWN:
        return _KNOWN[impl]
    digest = hashlib.sha256(impl.encode("utf-8", "replace")).digest()
    light, dark = _SPARE_COLOURS[digest[0] % len(_SPARE_COLOURS)]
    marker = _SPARE_MARKERS[digest[1] % len(_SPARE_MARKERS)]
    return Look(light, dark, marker, _SPARE_DASHES[digest[2] % len(_SPARE_DASHES)])


def order(impl: str) -> tuple[int, str]:
    """Sort key of implementations: the baseline, then those known here in families, then others by name."""
    known = list(_KNOWN)
    return (known.index(impl) if impl in _KNOWN else len(known), impl)


# The ink of figures. In the page these very colours are swapped for CSS variables, so they stand for nothing else.
INK, FAINT, RULE, PAPER = "#1c1d1f", "#5c5f66", "#d9dbdf", "#fffffe"
