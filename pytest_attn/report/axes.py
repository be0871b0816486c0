"""Axes of figures: scales that fit the data, ticks in the units people use, and labels that do not collide."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, MultipleLocator, NullFormatter, NullLocator

from pytest_attn.report.style import FAINT, RULE
from pytest_attn.report.words import tick, times


def dress(ax: Axes) -> None:
    """Give ``ax`` the look of all figures: a faint grid along the values, no frame."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(RULE)
    ax.tick_params(colors=FAINT, length=3, width=0.6, labelsize=9)
    ax.set_axisbelow(True)
    # Axes here have no y label, and an x label at a fixed place: searching for room costs a tenth of a figure's time.
    ax.yaxis.set_label_coords(-0.2, 0.5)
    ax.xaxis.set_label_coords(0.5, -0.2)


def name_x(ax: Axes, text: str) -> None:
    """Name the x axis, at a fixed distance."""
    figure = ax.get_figure(root=True)
    inches = ax.get_position().height * (figure.get_figheight() if figure else 1.0)
    ax.set_xlabel(text, size=9.5, color=FAINT)
    ax.xaxis.set_label_coords(0.5, -0.3 / inches)


def points_axis(ax: Axes, values: Sequence[int]) -> None:
    """Make the x axis of a sweep: a tick at each point, log2 where the points span more than 4x."""
    low, high = values[0], values[-1]
    if low > 0 and high > 4 * low:
        ax.set_xscale("log", base=2)
        room = (high / low) ** 0.05
        ax.set_xlim(low / room, high * room)
    else:
        room = 0.05 * (high - low)
        ax.set_xlim(low - room, high + room)
    ax.xaxis.set_major_locator(FixedLocator(_spaced(ax, values)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: point(value)))


def point(value: float, places: int = 3) -> str:
    """Return a count on an axis: 512, 4k, and in full whatever is no multiple of 1024."""
    return f"{value / 1024:g}k" if value >= 2048 and value % 1024 == 0 else f"{value:g}"


def _spaced(ax: Axes, values: Sequence[int]) -> list[float]:
    # Keep the last point, then each point to its left that leaves room for its label.
    scale = ax.get_xscale()
    place: Callable[[float], float] = math.log2 if scale == "log" else float
    width = place(values[-1]) - place(values[0])
    kept = [float(values[-1])]
    for value in reversed(values[:-1]):
        if place(kept[-1]) - place(value) >= 0.105 * width:
            kept.append(float(value))
    return kept[::-1]


def log_values_axis(
    ax: Axes, low: float, high: float, unit: Callable[[float, int], str], base: int, along: str = "y", most: int = 7
) -> None:
    """Make a log axis from ``low`` to ``high`` with at most ``most`` ticks: 1-2-5 in base 10, powers in base 2."""
    if along == "y":
        ax.set_yscale("log", base=base)
        ax.set_ylim(low, high)
    else:
        ax.set_xscale("log", base=base)
        ax.set_xlim(low, high)
    axis = ax.yaxis if along == "y" else ax.xaxis
    ticks = _ticks10(low, high, most) if base == 10 else _ticks2(low, high, most)
    if along == "x":  # a label is centred on its tick: the last one would be cut off at the edge
        ticks = [tick for tick in ticks if math.log(tick / low) <= 0.94 * math.log(high / low)]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(unit(value, 3))))
    axis.grid(color=RULE, linewidth=0.6)


def linear_values_axis(
    ax: Axes, high: float, unit: Callable[[float, int], str], base: int, along: str = "y", most: int = 5
) -> None:
    """Make an axis from zero to ``high``: lengths on it may be compared."""
    if along == "y":
        ax.set_ylim(0, high)
    else:
        ax.set_xlim(0, high)
    axis = ax.yaxis if along == "y" else ax.xaxis
    # Sizes step by powers of two: a third of a GiB is no round number.
    binary = MultipleLocator(2.0 ** math.ceil(math.log2(high / most)))
    axis.set_major_locator(binary if base == 2 else MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(unit(value, 3)) if value else "0"))
    axis.grid(color=RULE, linewidth=0.6)


def ratios_axis(ax: Axes, low: float, high: float, along: str = "x", most: int = 5) -> None:
    """Make an axis of factors around 1: log where they span more than 3x, so that halves lie opposite doubles."""
    if high / low > 3:
        log_values_axis(ax, low, high, times, 10, along, most)
        return
    set_limits = ax.set_xlim if along == "x" else ax.set_ylim
    set_limits(low, high)
    axis = ax.xaxis if along == "x" else ax.yaxis
    axis.set_major_locator(MaxNLocator(most, prune="upper" if along == "x" else None))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axis.grid(color=RULE, linewidth=0.6)


def _ticks10(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def _ticks2(low: float, high: float, most: int) -> list[float]:
    powers = list(range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1))
    # Steps that divide 10 or 30 keep MiB or GiB on the axis.
    ticks: list[float] = []
    for step in (1, 2, 3, 5, 10):
        ticks = [2.0**power for power in powers if power % step == 0]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def spread_labels(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return ``wanted`` heights moved as little as needed to be ``gap`` apart within ``low`` to ``high``.

    Neighbours that collide are merged into a block that sits at the mean of what its members wanted, as isotonic
    regression does; with more labels than fit, the gap shrinks.
    """
    if not wanted:
        return []
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    ranks = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    blocks: list[tuple[float, int]] = []  # (sum of wanted bottoms, members)
    for rank, index in enumerate(ranks):
        total, members = wanted[index] - rank * gap, 1
        while blocks and blocks[-1][0] / blocks[-1][1] >= total / members:
            before = blocks.pop()
            total, members = total + before[0], members + before[1]
        blocks.append((total, members))
    placed = [total / members for total, members in blocks for _ in range(members)]
    highest = high - (len(wanted) - 1) * gap
    result = [0.0] * len(wanted)
    for rank, index in enumerate(ranks):
        result[index] = min(max(placed[rank], low), highest) + rank * gap
    return result
