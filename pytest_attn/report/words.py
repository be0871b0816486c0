"""Numbers and names as people read them: units, three significant digits, text that is safe to show."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata

DIRECTIONS = {"fwd": "forward", "bwd": "backward", "fwd_bwd": "forward and backward"}
STATUS_WORDS = {
    "ok": "measured",
    "oom": "out of memory",
    "unsupported": "unsupported",
    "error": "error",
    "host_bound": "host-bound",
    "noisy": "noisy",
}
STATUS_MARKS = {"oom": "OOM", "unsupported": "unsupported", "error": "error", "host_bound": "host", "noisy": "noisy"}


def digits(value: float, places: int = 3) -> str:
    """Return ``value`` with ``places`` significant digits and no exponent: 0.0123, 1.23, 123, 12300."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    rounded = round(value, places - 1 - math.floor(math.log10(abs(value))))
    decimals = max(0, places - 1 - math.floor(math.log10(abs(rounded))))  # 0.9996 is 1.00
    return f"{rounded:.{min(decimals, 12)}f}"


def _scaled(value: float, step: float, units: tuple[str, ...], base: int, places: int) -> str:
    # 999.7 at three digits is 1000: take the next unit then, so that nothing reads "1000 µs".
    while base < len(units) - 1 and abs(value) >= step * (1 - 0.5 * 10**-places):
        value, base = value / step, base + 1
    return f"{digits(value, places)} {units[base]}"


def seconds(value: float, places: int = 3) -> str:
    """Return a duration given in seconds, e.g. ``12.3 µs``."""
    return _scaled(value * 1e9, 1000.0, ("ns", "µs", "ms", "s"), 0, places)


def size(value: float, places: int = 3) -> str:
    """Return a size given in bytes in binary units, e.g. ``1.5 MiB``."""
    return _scaled(value, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB"), 0, places)


def joules(value: float, places: int = 3) -> str:
    """Return an energy given in joules, e.g. ``12.3 µJ``."""
    return _scaled(value * 1e9, 1000.0, ("nJ", "µJ", "mJ", "J", "kJ"), 0, places)


def points(value: float, places: int = 3) -> str:
    """Return a value that is in per cent already, e.g. ``61.2 %``."""
    return f"{digits(value, places)} %"


def mask_words(mask: str) -> str:
    """Return a mask's id in words: ``causal top left``, ``window 4095 left, 0 right``."""
    window = re.fullmatch(r"window(\d+|inf)_(\d+|inf)", mask)
    if not window:
        return clean(mask).replace("_", " ")
    left, right = (bound.replace("inf", "all") for bound in window.groups())
    return f"window {left} left, {right} right"


def mask_kind(mask: str) -> str:
    """Return the kind of ``mask``, as a reader chooses it: ``full``, ``causal``, ``window`` or ``other``."""
    kind = re.match(r"full$|causal|window", mask)
    return kind[0] if kind else "other"


def tick(label: str) -> str:
    """Return the label of a tick, which is a round number, without the zeros that only a measurement needs."""
    return re.sub(r"\.(?!\d)", "", re.sub(r"(\.\d*?)0+(?=\D|$)", r"\1", label))


def times(ratio: float, places: int = 2) -> str:
    """Return a ratio as a factor, e.g. ``9.1×``: two digits, because a third is rarely reproducible."""
    return f"{digits(ratio, places if ratio < 100 else 3)}×"


def percent(ratio: float) -> str:
    """Return a ratio in per cent with two digits, e.g. ``14 %``."""
    return f"{digits(100 * ratio, 2 if ratio < 1 else 3)} %"


def heads(number: int) -> str:
    """Return ``1 head``, ``16 heads``."""
    return f"{number} head{'' if number == 1 else 's'}"


def count(number: int, noun: str) -> str:
    """Return ``1 record``, ``2 records``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(items: list[str], most: int = 4) -> str:
    """Join as a sentence does, and cut a long list: ``a, b and c``, ``a, b, c and 7 more``."""
    if len(items) > most:
        items = [*items[: most - 1], f"{len(items) - most + 1} more"]
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def clean(text: object) -> str:
    """Return ``text`` on one line without characters that XML forbids or that reorder what is read."""
    spaced = re.sub(r"\s+", " ", str(text)).strip()
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in {"Cc", "Cf", "Cs"} else c for c in spaced)


def short(text: object, most: int = 24) -> str:
    """Return ``text`` cleaned and cut in the middle, because names of one family differ at their ends."""
    name = clean(text)
    head = most * 2 // 3
    return name if len(name) <= most else f"{name[:head]}…{name[len(name) - (most - head - 1) :]}"


def slug(text: str) -> str:
    """Return an id for ``text`` of ``[a-z0-9-]``; different texts get different ids."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:32]
    if plain == text:
        return plain
    return f"{plain or 'x'}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:6]}"
