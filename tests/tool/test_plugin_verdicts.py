"""A stranger's function under the suite: right, wrong, broken, and the command that repeats a failure."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pytest_attn
from pytest_attn.correctness import profiles
from pytest_attn.frames import own_frames
from tests.tool.nested import KERNELS, ROOT, lay_out, repeat_commands, run, said
from tests.tool.nested import torch_is_whole as torch_is_whole

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def _laid_out(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    lay_out(pytester, "correctness")


def one_case(name: str, direction: str = "fwd") -> tuple[str, str]:
    """The options that judge ``mykernels:name`` on one small case, which costs nothing to draw and to shrink."""
    sizes = {"batch": 1, "heads": 2, "kv_heads": 2, "q_len": 4, "kv_len": 4, "head_dim": 8, "dtype": "fp32"}
    case = {"impl": f"mykernels:{name}", "direction": direction, "problem": sizes, "regime": "normal", "seed": 0}
    return "--attn-repro", json.dumps(case, separators=(",", ":"))


def test_a_right_function_passes(pytester: pytest.Pytester) -> None:
    (pytester.path / "six.py").write_text(
        "import torch.nn.functional as F\n\n\ndef attention(q, k, v, causal=False):\n"
        "    'Six lines.'\n    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)\n"
    )
    result = run(pytester, "--attn-impl", "six:attention", "-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*::test_forward[[]six:attention[]] PASSED*", "*::test_gradients[[]six:*[]] PASSED*"])
    result.stdout.re_match_lines([r"six:attention( +\d\.\d\d){5} +(50|200)  "])


def test_a_scale_one_percent_off_fails_and_its_command_repeats_it(pytester: pytest.Pytester) -> None:
    failed = run(pytester, "--attn-impl", "mykernels:off_by_one_percent", "-k", "test_", "test_equivalence.py")
    failed.assert_outcomes(failed=2)
    commands = repeat_commands(failed)
    assert len(commands) == 2
    seen = []
    for arguments in commands:
        again = run(pytester, *arguments)
        assert again.ret == 1
        again.assert_outcomes(failed=1, deselected=1)
        assert repeat_commands(again) == [arguments]  # the same case, and only that
        (summary,) = [line for line in again.outlines if re.match(r"mykernels:.+/\w+/\d+$", line)]
        repro = json.loads(arguments[arguments.index("--attn-repro") + 1])
        assert summary.endswith(f"/{repro['regime']}/{repro['seed']}")
        # What is wrong reads the same: implementation, problem, values.
        complaint = [line for line in again.outlines if "WRONG" in line or " is wrong on " in line]
        assert complaint
        assert set(complaint) <= set(failed.outlines)
        seen.append(repro["direction"])
    assert seen == ["fwd", "bwd"]
    fixed = KERNELS.replace("return right(q, k, v, causal, 1.01)", "return right(q, k, v, causal)  # fixed")
    (pytester.path / "mykernels.py").write_text(fixed)
    for arguments in commands:
        repaired = run(pytester, *arguments)
        assert repaired.ret == 0
        repaired.assert_outcomes(passed=1, deselected=1)
        repaired.stdout.re_match_lines([r"mykernels:off_by_one_percent( +\S+){5} +1  "])


def test_a_failure_is_a_few_lines_without_our_frames(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = run(pytester, *one_case("off_by_one_percent"))
    text = said(result)
    result.stdout.re_match_lines(
        [
            r"mykernels:off_by_one_percent is wrong on b\d+-h.+$",
            r"  regime \w+, seed \d+, fwd, on cpu$",
            r"  WRONG out  error/budget .+ at \[.+\]: got .+, want .+, off by .+, allowed .+$",
            r"  repeat: pytest -m correctness --attn-repro '\{\"impl\":\"mykernels:off_by_one_percent\",.+'$",
            r"FAILED .*test_forward\[mykernels:off_by_one_percent\] - mykernels:off_by_one_percent is wrong on ",
        ]
    )
    assert "Traceback" not in text
    assert "hypothesis" not in text.partition("= FAILURES =")[2]


def test_the_repeat_command_keeps_the_device(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--attn-device", "cpu", *one_case("nan"))
    assert repeat_commands(result) == [["-m", "correctness", "--attn-device", "cpu", *one_case("nan")]]


def test_the_repeat_command_keeps_the_path(pytester: pytest.Pytester) -> None:
    result = run(pytester, "test_equivalence.py", *one_case("nan"))
    assert repeat_commands(result) == [["test_equivalence.py", "-m", "correctness", *one_case("nan")]]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nan", "WRONG out  error/budget inf (rms inf) at [0, 0, 0, 0]: got nan, want "),
        ("short", "  the output has shape (1, 2, 3, 8), not (1, 2, 4, 8)"),
        ("double", "  the output has dtype torch.float64, not torch.float32"),
        ("nothing", "  the output is None, not a tensor"),
        ("raising", "  raised RuntimeError: kernel exploded"),
        ("full_card", "  OutOfMemoryError: CUDA out of memory. Tried to allocate 12.50 GiB. GPU 0 has 1 GiB free."),
    ],
)
def test_a_broken_function_fails_with_a_sentence(pytester: pytest.Pytester, name: str, sentence: str) -> None:
    for direction in ("fwd", "bwd"):
        result = run(pytester, *one_case(name, direction))
        result.assert_outcomes(failed=1, deselected=1)
        assert sentence in said(result)
        assert repeat_commands(result) == [["-m", "correctness", *one_case(name, direction)]]


def test_the_frames_of_a_function_that_raises_are_shown(pytester: pytest.Pytester) -> None:
    for direction in ("fwd", "bwd"):
        shown = said(run(pytester, *one_case("raising", direction)))
        frames = [line.split('"')[1] for line in shown.splitlines() if line.startswith("  File ")]
        assert [Path(file).name for file in frames] == ["mykernels.py"]


def test_a_package_whose_name_begins_with_ours_is_not_ours() -> None:
    ours = Path(pytest_attn.__file__).parent
    spaces: dict[str, Any] = {}
    exec(compile("def kernel(): raise ValueError", f"{ours}_kernels/mine.py", "exec"), spaces)
    exec(compile("def call(): kernel()", str(ours / "caller.py"), "exec"), spaces)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        spaces["call"]()
    error = raised.value.with_traceback(raised.tb.tb_next)
    assert [line for line in own_frames(error).splitlines() if "File" in line] == [
        f'  File "{ours}_kernels/mine.py", line 1, in kernel'
    ]


def test_one_wrong_implementation_leaves_the_others_alone(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--attn-impl", "mykernels:raising", "--attn-impl", "mykernels:right", "-k", "forward")
    result.assert_outcomes(passed=1, failed=1, deselected=2)


def test_one_that_finds_that_it_cannot_run(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--attn-impl", "mykernels:unavailable", "-k", "forward")
    result.assert_outcomes(failed=1, deselected=1)  # it was asked for by name
    assert "mykernels:unavailable cannot run here: no compiler" in said(result)


def test_a_function_without_causal_is_judged_on_the_full_mask(pytester: pytest.Pytester) -> None:
    run(pytester, "--attn-impl", "mykernels:plain", "-k", "forward").assert_outcomes(passed=1, deselected=1)


def test_our_hypothesis_profiles_are_known_before_hypothesis_looks_one_up(pytester: pytest.Pytester) -> None:
    # In a process of its own: this one has registered them already.
    pytester.path.joinpath("test_equivalence.py").write_text("def test_it(): pass")
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "--hypothesis-profile", "nightly").assert_outcomes(passed=1)


def test_the_loaded_profile_is_used_if_it_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded, examples in (("ci", 100), ("nightly", 2000), ("dev", 25), ("default", 25)):
        known = SimpleNamespace(get_current_profile_name=lambda loaded=loaded: loaded)
        with monkeypatch.context() as patched:
            patched.setattr(profiles, "settings", known)
            assert profiles.suite_settings().max_examples == examples, loaded
