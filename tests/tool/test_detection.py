"""The suite catches every planted fault at the profile ``ci``, and lets the kernel pass that they were planted in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tool.detection import first_failure
from tests.tool.faults import FAULTS, RIGHT


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Problems are so small that threads cost more than they bring, most of all on a shared machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_right_kernel_passes() -> None:
    caught = first_failure(RIGHT)
    assert caught is None, caught.report


def test_there_are_enough_faults() -> None:
    assert len(FAULTS) >= 32
    assert all(fault.summary.endswith(".") for fault in FAULTS.values())


def test_the_committed_table_is_about_these_faults() -> None:
    table = Path(__file__).parents[2] / "reports" / "detection" / "table.json"
    assert [row["name"] for row in json.loads(table.read_text()) if row["kind"] == "fault"] == list(FAULTS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught(name: str) -> None:
    caught = first_failure(FAULTS[name])
    assert caught is not None, f"nothing failed for: {FAULTS[name].summary}"
