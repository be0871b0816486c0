"""The verdicts as JSON, for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pytest_attn.gate.thresholds import Thresholds
from pytest_attn.gate.verdict import Verdict

SCHEMA = 2


def document(verdicts: Sequence[Verdict], thresholds: Thresholds, code: int, **more: Any) -> dict[str, Any]:
    """Return plain JSON values: the verdicts, the thresholds that they were judged by, and the gate's exit code.

    Args:
        verdicts: as the judges return them.
        thresholds: what they were given.
        code: the gate's exit code.
        more: what else the caller knows, for instance ``base="run.json"``; JSON values.
    """
    return {
        "schema": SCHEMA,
        **more,
        "thresholds": dataclasses.asdict(thresholds),
        "exit_code": code,
        "verdicts": [verdict.to_dict() for verdict in verdicts],
    }
