"""The table that reports/h100/nightly.py makes of its logs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.tool.nested import ROOT

LOG = """.s                                                                       [100%]
========= attention: worst error over budget by rule (1 is the limit) ==========
      element   rms   row  gain  scale  cases  worst at
{name}     {worst}  0.10  0.20  0.30   0.05   {cases}  {at}
{said}, 22 deselected in 98.76s (0:01:38)
"""


@pytest.fixture
def nightly() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("nightly", ROOT / "reports" / "h100" / "nightly.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nightly"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["nightly"]


def test_a_divided_run_is_told_as_one_and_only_when_it_is_whole(nightly: ModuleType, tmp_path: Path) -> None:
    for part in range(len(nightly.PARTS)):
        said = "1 failed, 1 passed" if part == 2 else "2 passed, 1 skipped, 3 errors"
        worst, at = ("inf", "dq here") if part == 2 else ("0.40", f"dk there-{part}")
        log = LOG.format(name="flex", worst=worst, cases=100 + part, at=at, said=said)
        nightly.Run("flex", 1, part).log(tmp_path).write_text(log)
        if part:
            nightly.Run("flex", 2, part).log(tmp_path).write_text(log)
    (tmp_path / "flex-2.0.part").write_text("..")
    nightly.Run("two:of it", 3).log(tmp_path).write_text(
        LOG.format(name="two of it", worst="0.50", cases=7, at="out x/1", said="= 18 passed, 6 skipped")
    )
    assert nightly.table(tmp_path).splitlines() == [
        "# seed  what pytest said",
        "1  flex: 1 failed, 13 passed, 6 skipped, 18 error",
        "3  two.of it: 18 passed, 6 skipped",
        "# worst error over budget by rule (element, rms, row, gain, scale), cases, and where",
        "1  flex  inf  0.10  0.20  0.30  0.05  721  dq here",
        "3  two of it  0.50  0.10  0.20  0.30  0.05  7  out x/1",
    ]


def test_each_name_and_seed_is_run_whole_and_the_longest_first(nightly: ModuleType) -> None:
    found = nightly.runs(["naive", "flex"], [1, 2])
    assert found[0] == ("flex", 1, 0)
    assert sorted(found[:-2]) == [("flex", seed, part) for seed in (1, 2) for part in range(len(nightly.PARTS))]
    assert found[-2:] == [("naive", 1, None), ("naive", 2, None)]
