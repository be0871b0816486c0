"""Figures as files and as parts of the page.

A figure is drawn once. The page takes its panels apart, so that they stand side by side on a desk and under each other
on a phone, and swaps the fixed colours for CSS variables, so that they follow the reader's light or dark page.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from xml.etree import ElementTree

from pytest_attn.report.draw import Panel, Sheet, settings
from pytest_attn.report.style import FAINT, INK, PAPER, RULE, Look
from pytest_attn.report.words import mask_kind

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_INKS = {INK: "var(--ink)", FAINT: "var(--faint)", RULE: "var(--rule)", PAPER: "var(--paper)"}
# Two digits of a point are finer than any screen, and halve the page.
_NUMERIC, _LONG = {"d", "x", "y", "transform", "width", "height"}, re.compile(r"-?\d+\.\d{3,}")
# Half of the time of the default for a tenth more bytes.
_PNG = {"compress_level": 4}
_FONT = re.compile(r"(font: [^;]*?px) [^;]+")


def files(sheet: Sheet) -> tuple[bytes, bytes]:
    """Return ``(svg, png)``: the same bytes for the same figure, without dates or versions."""
    svg, png = io.BytesIO(), io.BytesIO()
    with settings(), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; that is no reason to stop or to shout.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        sheet.figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        sheet.figure.savefig(png, format="png", dpi=144, metadata={"Software": None}, pil_kwargs=_PNG)
    return svg.getvalue(), png.getvalue()


def variable(colour: str) -> str:
    """Return the name of the CSS variable that stands for the colour of a series."""
    return f"--c-{colour.removeprefix('#')}"


def inline(
    sheet: Sheet, svg: bytes, looks: Iterable[Look], series: Mapping[str, tuple[int, int]] = MappingProxyType({})
) -> list[str]:
    """Return one ``<svg>`` element for each panel of ``sheet``, to be put into the page as it is.

    What ``sheet.marks`` names carries the numbers of its implementation and run, which ``series`` gives, as ``data-i``
    and ``data-n``, and each of its points the number of its record as ``data-r``.
    """
    root = ElementTree.fromstring(svg)
    inks = _INKS | {look.light: f"var({variable(look.light)})" for look in looks}
    for element in root.iter():
        _localise(element, sheet.name, inks)
    parents = {child: parent for parent in root.iter() for child in parent}
    # Marks are defined where they are first used, maybe in another panel: the first panel carries all definitions.
    definitions = ElementTree.Element("defs")
    for defs in [element for element in root.iter("defs") if element in parents]:
        parents[defs].remove(defs)
        definitions.extend(child for child in defs if child.tag != "style")  # its rules would reach the whole page
    groups = {element.get("id"): element for element in root.iter("g")}
    for gid, hint in sheet.hints.items():
        group = groups.get(f"{sheet.name}-{gid}")
        if group is not None:
            title = ElementTree.Element("title")
            title.text = hint
            group.insert(0, title)
    for gid, mark in sheet.marks.items():
        group = groups.get(f"{sheet.name}-{gid}")
        if group is not None and mark.series in series:
            implementation, run = series[mark.series]
            group.set("data-i", str(implementation))
            group.set("data-n", str(run))
            _number_points(group, mark.records)
    shown = []
    for number, panel in enumerate(sheet.panels):
        parts = [groups[f"{sheet.name}-{panel.gid}"]]
        shown.append(_panel(panel, [definitions, *parts] if number == 0 else parts))
    return shown


def _number_points(group: ElementTree.Element, records: tuple[int, ...]) -> None:
    # Markers are uses of one shape; a bar is a path. A count that does not fit would give points others' values.
    points = list(group.iter("use")) or list(group.iter("path"))
    if len(points) == len(records):
        for point, record in zip(points, records, strict=True):
            point.set("data-r", str(record))


def _panel(panel: Panel, parts: list[ElementTree.Element]) -> str:
    x, y, width, height = panel.box
    attributes = {
        "class": "panel",
        "viewBox": f"{x:g} {y:g} {width:g} {height:g}",
        "role": "img",
        "aria-label": panel.alt,
        **({"data-mask": mask_kind(panel.mask)} if panel.mask else {}),
    }
    element = ElementTree.Element("svg", attributes)
    element.extend(parts)
    return ElementTree.tostring(element, encoding="unicode")


def _localise(element: ElementTree.Element, prefix: str, inks: dict[str, str]) -> None:
    """Drop namespaces, make ids unique in a page of many figures, and hand fonts and colours to the page's CSS."""
    element.tag = element.tag.removeprefix(_SVG)
    for name, value in list(element.attrib.items()):
        if name == "id":
            element.set(name, f"{prefix}-{value}")
        elif name == f"{_XLINK}href":
            del element.attrib[name]
            element.set("href", f"#{prefix}-{value.removeprefix('#')}")
        elif value.startswith("url(#"):
            element.set(name, f"url(#{prefix}-{value.removeprefix('url(#')}")
        elif name in _NUMERIC:
            element.set(name, _LONG.sub(_rounded, value))
        elif name == "style":
            value = _FONT.sub(r"\1 var(--sans)", value)
            element.set(name, re.sub(r"#[0-9a-f]{6}", lambda found: inks.get(found[0], found[0]), value))


def _rounded(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")
