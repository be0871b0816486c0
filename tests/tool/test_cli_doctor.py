"""``attn doctor``: what is here, what is missing, and an answer whatever it looks at."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from attn_impls import Capabilities, Implementation, Registry
from pytest_attn.cli import main
from pytest_attn.commands import doctor
from pytest_attn.commands.probing import first_line


def words(out: str, name: str) -> list[str]:
    """The words of the line about ``name``."""
    return next(line.split() for line in out.splitlines() if line.split()[1:2] == [name])


def never(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, problem: object) -> torch.Tensor:
    raise AssertionError("the doctor calls no implementation")


def test_it_names_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert words(out, "torch")[:3] == ["ok", "torch", f"{torch.__version__},"]
    for name in ("Python", "pytest", "pytest-benchmark", "hypothesis", "cpu", "naive"):
        assert words(out, name)[0] == "ok"
    for name in ("c++", "nvcc", "ncu", "ninja", "matplotlib", "pandas", "jinja2", "nvidia-ml-py", "flash-attn"):
        assert words(out, name)[0] in ("ok", "missing")
    assert out.splitlines()[-1].startswith("attn doctor: ready; ")


def test_without_torch_it_says_so_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert words(out, "torch")[0] == "missing"
    assert "get it: pip install torch" in out
    assert words(out, "Python")[0] == "ok"
    assert out.splitlines()[-1] == "attn doctor: torch is missing, so nothing can run"


def test_a_missing_compiler_and_package_come_with_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("attn_impls.tiled.build.cuda_tool", lambda name: None)
    monkeypatch.setattr(doctor, "package_version", lambda name: None)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert words(out, "c++")[0] == "missing"
    assert "apt-get install g++" in out
    assert words(out, "nvcc")[0] == "missing"
    assert words(out, "matplotlib")[0] == "missing"
    assert "pip install 'pytest-attn[report]'" in out


def test_the_compiler_that_torch_would_use_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "env c++")  # torch quotes it as one program
    assert main(["doctor"]) == 0
    assert words(capsys.readouterr().out, "env")[:3] == ["missing", "env", "c++"]


def test_a_toolkit_beside_the_path_is_found_as_a_build_finds_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 99.1'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert main(["doctor"]) == 0
    assert " ".join(words(capsys.readouterr().out, "nvcc")) == "ok nvcc Cuda compilation tools, release 99.1"


def test_implementations_say_why_and_how(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def boom() -> str:
        raise OSError("libcudart.so.13: cannot open")

    items = [
        Implementation("here", never, version=lambda: "here 1.2"),
        Implementation("gone", never, probe=lambda: "no such package", how_to_get="pip install gone"),
        Implementation("bad-probe", never, probe=boom),
        Implementation("bad-version", never, version=boom),
        Implementation("nowhere", never, Capabilities(devices=frozenset({"tpu"})), version=lambda: "nowhere 1"),
    ]
    registry = Registry({item.name: item for item in items}, {"theirs": "ImportError: no\nlibfoo"})
    monkeypatch.setattr("attn_impls.discover", lambda: registry)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert " ".join(words(out, "here")).startswith("ok here here 1.2 on ")
    assert " ".join(words(out, "gone")) == "missing gone no such package; get it: pip install gone"
    assert words(out, "bad-probe")[0] == "broken"
    assert "libcudart.so.13" in " ".join(words(out, "bad-probe"))
    assert words(out, "bad-version")[:4] == ["ok", "bad-version", "version", "unknown"]
    broken = next(line for line in out.splitlines() if "entry point theirs" in line)
    assert broken.split()[0] == "broken"
    assert broken.endswith("ImportError: no libfoo")


def test_a_program_that_fails_or_hangs_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_line([sys.executable, "-c", "print('\\n one \\ntwo')"]) == "one"
    assert first_line([sys.executable, "-c", "print('one\\ntwo')"], "w") == "two"
    assert first_line([sys.executable, "-c", "print('one')"], "x") is None
    assert first_line([sys.executable, "-c", "print('one'); raise SystemExit(1)"]) is None
    assert first_line([str(tmp_path / "nothing")]) is None
    monkeypatch.setattr("pytest_attn.commands.probing._PROBE_SECONDS", 0.2)
    assert first_line([sys.executable, "-c", "import time; time.sleep(60)"]) is None
