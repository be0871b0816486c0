"""``--attn-skips`` and ``--attn-xfails``: what a line matches, and what happens to one that matches nothing."""

from __future__ import annotations

import pytest

from pytest_attn.known import Line, parse
from tests.tool.nested import lay_out, repeat_commands, run, said

pytest_plugins = ["pytester"]
WRONG = "mykernels:off_by_one_percent"


def write(pytester: pytest.Pytester, text: str) -> str:
    (pytester.path / "known.txt").write_text(text)
    return "known.txt"


def test_lines() -> None:
    text = "# a heading\n\na.py::test[x]  # why # so\n\tb.py\nc.py::test[p#q] #\n"
    assert parse(text, "f") == [
        Line("a.py::test[x]", "why # so", "f:3"),
        Line("b.py", "", "f:4"),
        Line("c.py::test[p#q]", "", "f:5"),
    ]


def test_listed_tests_are_skipped_with_reason_and_place(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    listed = write(pytester, "# no dk yet\ntest_equivalence.py::test_gradients[naive  # a reason\n")
    result = run(pytester, "--attn-impl", "naive", "--attn-skips", listed, "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*: a reason (known.txt:2)"])


def test_a_listed_failure_is_expected_and_a_listed_success_is_not(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    listed = write(pytester, "test_equivalence.py::test_forward\n")
    result = run(pytester, "--attn-impl", WRONG, "-k", "forward", "--attn-xfails", listed)
    result.assert_outcomes(xfailed=1, deselected=1)
    assert result.ret == 0
    result = run(pytester, "--attn-impl", "naive", "-k", "forward", "--attn-xfails", listed)
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(["*XPASS(strict)*listed (known.txt:1)*"])


@pytest.mark.parametrize("option", ["--attn-skips", "--attn-xfails"])
def test_a_line_that_matches_nothing_is_an_error(pytester: pytest.Pytester, option: str) -> None:
    lay_out(pytester, "correctness")
    listed = write(pytester, "test_equivalence.py::test_forward\n\ntest_equivalence.py::test_forwards  # renamed\n")
    result = run(pytester, "--attn-impl", "naive", option, listed)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    sentence = f"{option} known.txt:3: 'test_equivalence.py::test_forwards' matches no collected test"
    assert f"ERROR: {sentence}" in said(result)


@pytest.mark.parametrize(
    ("name", "why"), [("nowhere.txt", "No such file or directory"), ("image.txt", "it is not UTF-8 text")]
)
def test_a_file_that_cannot_be_read_is_an_error(pytester: pytest.Pytester, name: str, why: str) -> None:
    lay_out(pytester, "correctness")
    (pytester.path / "image.txt").write_bytes(b"\xff\xfe")
    result = run(pytester, "--attn-skips", name)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: --attn-skips {name} cannot be read: {why}" in said(result)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("-m", "perf"), id="deselected by mark"),
        pytest.param(("-k", "nothing"), id="deselected by keyword"),
        pytest.param(("--attn-impl", "sdpa-math"), id="another implementation"),
        pytest.param(("test_equivalence.py::test_forward",), id="a single test"),
    ],
)
def test_a_line_about_tests_that_this_run_leaves_out_is_no_error(
    pytester: pytest.Pytester, arguments: tuple[str, ...]
) -> None:
    lay_out(pytester, "correctness")
    listed = write(pytester, "test_equivalence.py::test_gradients[naive]\n")
    result = run(pytester, "--collect-only", "-q", "--attn-skips", listed, *arguments)
    assert result.ret in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED), said(result)


def test_a_line_about_a_file_that_was_not_given_is_no_error(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    (pytester.path / "test_other.py").write_text("def test_it(): pass\n")
    for file, code in (("test_equivalence", pytest.ExitCode.OK), ("test_gone", pytest.ExitCode.USAGE_ERROR)):
        listed = write(pytester, f"{file}.py::test_gradients\n")
        result = run(pytester, "test_other.py", "--collect-only", "-q", "--attn-skips", listed)
        assert result.ret == code, said(result)


def test_a_line_about_a_function_that_is_not_selected_is_no_error(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    for test, code in (("gradients", pytest.ExitCode.OK), ("gradient", pytest.ExitCode.USAGE_ERROR)):
        listed = write(pytester, f"test_equivalence.py::test_{test}[{WRONG}]\n")
        result = run(pytester, "--collect-only", "-q", "--attn-impl", "naive", "--attn-skips", listed)
        assert result.ret == code, said(result)


def test_an_unknown_implementation_is_an_error_where_others_are_left_out(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    listed = write(pytester, "test_equivalence.py::test_gradients[naiv]\n")
    result = run(pytester, "--collect-only", "-q", "--attn-impl", "sdpa-math", "--attn-skips", listed)
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_a_repeated_case_is_not_marked(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    (command,) = repeat_commands(run(pytester, "--attn-impl", WRONG, "-k", "forward"))
    listed = write(pytester, "test_equivalence.py::test_forward\nno_such_file.py\n")
    run(pytester, *command, "--attn-xfails", listed).assert_outcomes(failed=1, deselected=1)


def test_suite_names_do_not_depend_on_where_it_is_installed(pytester: pytest.Pytester) -> None:
    lay_out(pytester, "correctness")
    folder = pytester.path / "site" / "pytest_attn" / "suite" / "correctness"
    folder.mkdir(parents=True)
    (pytester.path / "test_equivalence.py").rename(folder / "test_equivalence.py")
    listed = write(pytester, "correctness/test_equivalence.py::test_forward[naive]\n")
    run(pytester, "--attn-impl", "naive", "-k", "forward", "--attn-skips", listed).assert_outcomes(
        skipped=1, deselected=1
    )


def test_ids_match_as_pytest_prints_them_from_another_folder(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(pytester, "correctness")
    pytester.makeini("[pytest]")
    elsewhere = pytester.mkdir("elsewhere")
    monkeypatch.chdir(elsewhere)
    (elsewhere / "known.txt").write_text("../test_equivalence.py::test_forward[naive]")
    result = run(pytester, "..", "--attn-impl", "naive", "-k", "forward", "-v", "--attn-skips", "known.txt")
    result.assert_outcomes(skipped=1, deselected=1)
    result.stdout.fnmatch_lines(["../test_equivalence.py::test_forward[[]naive[]] SKIPPED*"])
