"""``[tool.pytest-attn.gate]``: what it sets, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_attn.gate import BadSettings, Settings, read_settings
from pytest_attn.gate.settings import __doc__ as page

DOCS = Path(__file__).resolve().parents[2] / "docs" / "gate-verdicts.md"


def read(folder: Path, text: str) -> Settings:
    path = folder / "pyproject.toml"
    path.write_text(text)
    return read_settings(path)


def test_without_a_table_the_defaults_hold(tmp_path: Path) -> None:
    assert read_settings(tmp_path / "pyproject.toml") == Settings()
    assert read(tmp_path, "[project]\nname = 'x'\n[tool.pytest-attn]\n") == Settings()


def test_the_example_of_the_documentation_is_read(tmp_path: Path) -> None:
    assert page is not None
    example = "\n".join(line.strip() for line in page.partition("::\n")[2].partition("\nKeys are")[0].splitlines())
    settings = read(tmp_path, example)
    assert (settings.pairs, settings.fail_on_lost) == (11, True)
    assert settings.paired.relative == 0.04
    assert settings.stored.relative == 0.05
    assert (settings.paired.metrics["peak_bytes"].relative, settings.paired.metrics["peak_bytes"].floor) == (0, 1 << 20)
    cell = settings.paired.for_cell(("tiled-1", "b1-h4-kv4-q128-k128-d64-bf16-full", "fwd"))
    assert (cell.relative, cell.metrics["saved_bytes"].action) == (0.08, "off")
    other = settings.paired.for_cell(("tiled-1", "b1-h4-kv4-q128-k128-d64-bf16-full", "bwd"))
    assert (other.relative, other.metrics["saved_bytes"].action) == (0.04, "fail")


def test_the_page_of_settings_states_the_defaults(tmp_path: Path) -> None:
    text = DOCS.read_text(encoding="utf-8").partition("```toml\n")[2].partition("[[tool")[0]
    settings, defaults = read(tmp_path, text), Settings()
    # The page gives floors once, and stored runs have a wider one unless told.
    assert settings.paired == defaults.paired
    assert (settings.pairs, settings.fail_on_lost) == (defaults.pairs, defaults.fail_on_lost)
    assert settings.stored.relative == defaults.stored.relative
    whole = DOCS.read_text(encoding="utf-8").partition("```toml\n")[2].partition("```")[0]
    flex = read(tmp_path, whole).paired.for_cell(("flex", "b1-h4-kv4-q128-k128-d64-bf16-full", "bwd"))
    assert (flex.relative, flex.metrics["peak_bytes"].action) == (0.08, "off")


def test_stored_runs_have_a_share_of_their_own(tmp_path: Path) -> None:
    text = """
        [tool.pytest-attn.gate.time]
        relative = 0.02
        stored_relative = "8%"
        device_floor_s = 5e-6
        [[tool.pytest-attn.gate.cell]]
        match = "flex *"
        time = { relative = "4%", stored_relative = "12%" }
    """
    settings = read(tmp_path, text)
    flex = ("flex", "b1", "fwd")
    assert (settings.paired.relative, settings.paired.for_cell(flex).relative) == (0.02, 0.04)
    assert (settings.stored.relative, settings.stored.for_cell(flex).relative) == (0.08, 0.12)
    assert settings.paired.device_floor_s == settings.stored.device_floor_s == 5e-6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tool.pytest-attn.gate]\nthreshold = 3", "[tool.pytest-attn.gate]: 'threshold' is not one of pairs, "),
        ("[tool.pytest-attn.gate.time]\nrelativ = 3", "[tool.pytest-attn.gate.time]: 'relativ' is not one of relative"),
        ("[tool.pytest-attn.gate.time]\nrelative = 3", "[tool.pytest-attn.gate.time]: relative: '3' is not a share"),
        ("[tool.pytest-attn.gate.time]\nrelative = true", "relative: True is not a number"),
        ("[tool.pytest-attn.gate.time]\ndevice_floor_s = -1", "device_floor_s=-1 must be zero or more"),
        ("[tool.pytest-attn.gate.time]\nwall_floor_s = nan", "wall_floor_s=nan must be zero or more"),
        ("[tool.pytest-attn.gate.time]\nmin_pairs = 7.5", "min_pairs: 7.5 is not a whole number"),
        ("[tool.pytest-attn.gate.time]\nmin_pairs = 0", "min_pairs=0 must be one or more"),
        ("[tool.pytest-attn.gate.time]\nagreement = 2", "agreement=2 must be at most 1"),
        (
            "[tool.pytest-attn.gate.peak_bytes]\npercent = 1",
            "peak_bytes]: 'percent' is not one of relative, floor",
        ),
        ("[tool.pytest-attn.gate.peak_bytes]\naction = 'panic'", "action: 'panic' is not one of fail, warn, off"),
        ("[tool.pytest-attn.gate.peak_bytes]\nfloor = -1", "gate.peak_bytes]: threshold floor=-1 must be"),
        ("[tool.pytest-attn.gate]\npeak_bytes = 3", "[tool.pytest-attn.gate.peak_bytes]: it is not a table"),
        ("[tool.pytest-attn.gate]\npairs = 0", "[tool.pytest-attn.gate]: pairs: 0 is not a whole number"),
        ("[tool.pytest-attn.gate]\nfail_on_lost = 'yes'", "fail_on_lost: 'yes' is neither true nor false"),
        ("[tool.pytest-attn.gate.cell]\nmatch = 'x'", "[tool.pytest-attn.gate]: cell is not an array of tables"),
        ("[[tool.pytest-attn.gate.cell]]\ntime = {}", "[tool.pytest-attn.gate.cell]: match ="),
        ("[[tool.pytest-attn.gate.cell]]\nmatch='x'\nimpl='y'", "[tool.pytest-attn.gate.cell]: 'impl' is not one of"),
        ("[[tool.pytest-attn.gate.cell]]\nmatch='x'\ntime.relativ=1", "gate.cell.time]: 'relativ' is not one of"),
        ("[[tool.pytest-attn.gate.cell]]\nmatch='x'\npeak_bytes.floor=-1", "gate.cell.peak_bytes]: threshold floor"),
        ("[tool.pytest-attn]\ngate = 3", "tool.pytest-attn.gate is not a table"),
        ("[tool", "cannot read "),
    ],
)
def test_what_cannot_be_used_is_one_sentence_with_file_table_and_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadSettings) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)
    assert str(tmp_path / "pyproject.toml") in str(caught.value)
    assert "\n" not in str(caught.value)
