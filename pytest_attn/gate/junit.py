"""The verdicts as JUnit XML: a test case for each metric of each cell."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from pytest_attn.gate.shown import change, quantity
from pytest_attn.gate.verdict import TIME, Outcome, Verdict
from pytest_attn.text import printable


def junit(verdicts: Sequence[Verdict], *, fail_on_lost: bool = False) -> str:
    """Return the XML. ``slower`` is a failure, ``no-data`` is skipped, or an error where it is lost and that fails.

    The other outcomes pass, with their sentence as the case's output.
    """
    suite = ElementTree.Element("testsuite", name="attn-gate", tests=str(len(verdicts)))
    tally = {"failure": 0, "error": 0, "skipped": 0}
    for verdict in verdicts:
        case = ElementTree.SubElement(suite, "testcase", classname=_text(verdict.impl), name=_text(_name(verdict)))
        case.set("time", f"{verdict.head:.9f}" if verdict.metric == TIME and verdict.head is not None else "0")
        kind = _kind(verdict, fail_on_lost)
        said = f"{verdict.word} ({verdict.code}): {verdict.sentence}"
        if kind is None:
            ElementTree.SubElement(case, "system-out").text = _text(said)
            continue
        tally[kind] += 1
        found = ElementTree.SubElement(case, kind, message=_text(said))
        found.set("type", verdict.code)
        values = (quantity(verdict.metric, value) for value in (verdict.base, verdict.head))
        found.text = _text(" -> ".join(values) + f" {change(verdict)}")
    suite.set("failures", str(tally["failure"]))
    suite.set("errors", str(tally["error"]))
    suite.set("skipped", str(tally["skipped"]))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _kind(verdict: Verdict, fail_on_lost: bool) -> str | None:
    if verdict.outcome is Outcome.SLOWER:
        return "failure"
    if verdict.outcome is Outcome.NO_DATA:
        return "error" if verdict.lost and fail_on_lost else "skipped"
    return None


def _name(verdict: Verdict) -> str:
    return f"{verdict.problem_id} {verdict.direction}{'' if verdict.metric == TIME else f' {verdict.metric}'}"


def _text(text: str) -> str:
    """Return ``text`` without what XML 1.0 cannot hold, escapes included: control characters and lone surrogates."""
    return printable(text).encode("utf-8", "replace").decode("utf-8")
