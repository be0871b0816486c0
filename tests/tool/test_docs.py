"""The examples of the documentation, run."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.tool.nested import ROOT, lay_out, run
from tests.tool.nested import torch_is_whole as torch_is_whole

pytest_plugins = ["pytester"]
PAGES = ("README.md", "docs/judge-your-kernel.md")


def blocks(page: str, language: str) -> dict[str, str]:
    """Return the code blocks of a page that begin with the name of a file, by that name."""
    text = (ROOT / page).read_text()
    return {
        match[2]: match[1]
        for match in re.finditer(rf"^```{language}\n(# ([\w.]+)\n.*?)^```$", text, re.MULTILINE | re.DOTALL)
    }


FUNCTIONS = [(page, name) for page in PAGES for name in blocks(page, "python")]


def test_functions_are_found() -> None:
    assert [name for _, name in FUNCTIONS] == ["mykernels.py", "mykernels.py", "declared.py"]


@pytest.mark.parametrize(("page", "name"), FUNCTIONS)
def test_a_function_passes(pytester: pytest.Pytester, page: str, name: str) -> None:
    lay_out(pytester, "correctness")
    (pytester.path / name).write_text(blocks(page, "python")[name])
    run(pytester, "--attn-impl", f"{name.removesuffix('.py')}:attention").assert_outcomes(passed=2)


def test_the_list_of_known_failures_matches_the_suite(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    (pytester.path / "test_equivalence.py").unlink()
    folder = pytester.path / "site" / "pytest_attn" / "suite" / "correctness"
    folder.mkdir(parents=True)
    for source in (ROOT / "tests" / "correctness").glob("test_*.py"):
        shutil.copy(source, folder)
    (pytester.path / "known.txt").write_text(blocks(PAGES[1], "")["known.txt"])
    arguments = ("--attn-impl", "mykernels:right", "--attn-skips", "known.txt", "-k", "gradients or linear")
    # The page calls its function by another name.
    (pytester.path / "known.txt").write_text((pytester.path / "known.txt").read_text().replace(":attention", ":right"))
    outcomes = run(pytester, *arguments).parseoutcomes()
    assert outcomes.pop("deselected")
    assert outcomes == {"skipped": 2}


@pytest.mark.parametrize("page", [*PAGES, "docs/ladder.md", "examples/my_attention_kernels/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_options_exist(pytestconfig: pytest.Config) -> None:
    missing = object()
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    named = {(option, page.name) for page in pages for option in re.findall(r"--attn-[a-z-]+", page.read_text())}
    assert ("--attn-impl", "README.md") in named
    assert {(option, page) for option, page in named if pytestconfig.getoption(option, missing) is missing} == set()
