"""Builds of extensions: what is missing is said, a failure carries the compiler's words, nothing is built twice."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from attn_impls.implementation import Unavailable
from attn_impls.tiled import ASYNC, CPU, HOPPER, build, tiled_cpu, tiled_smem
from attn_impls.tiled.build import Extension

TOY = """
#include <torch/csrc/stable/library.h>
int64_t plus_one(int64_t x) { return x + ADDEND; }
STABLE_TORCH_LIBRARY_FRAGMENT(attn_toy, library) { library.def("plus_one(int x) -> int"); }
STABLE_TORCH_LIBRARY_IMPL(attn_toy, CompositeExplicitAutograd, library) {
  library.impl("plus_one", TORCH_BOX(&plus_one));
}
"""
CHILD = """
import sys
from pathlib import Path
import torch
from attn_impls.tiled.build import Extension, load
load(Extension("attn_toy", (Path(sys.argv[1]),), cflags=("-std=c++20",)))
print(torch.ops.attn_toy.plus_one(1))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of extensions, for this test and the processes that it starts."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    source = tmp_path / "toy.cpp"
    source.write_text(TOY.replace("ADDEND", "1"))
    return source


def run_child(source: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, str(source)]
    root = Path(build.__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root, check=False)


def test_second_process_does_not_build_and_a_killed_one_does_not_hang(cache: Path, toy: Path) -> None:
    extension = Extension("attn_toy", (toy,), cflags=("-std=c++20",))
    target = build.library(extension)
    # What a build that was killed leaves behind: PyTorch's lock file, ours, and half a library.
    target.parent.mkdir(parents=True)
    for name in ("lock", "flock", target.name):
        (target.parent / name).write_text("")

    first = run_child(toy)
    assert first.stdout == "2\n", first.stderr
    assert f"building attn_toy (toy.cpp) in {target.parent}" in first.stderr
    second = run_child(toy)
    assert (second.stdout, second.stderr) == ("2\n", "")


def test_cache_key_follows_sources_headers_and_flags(toy: Path) -> None:
    extension = Extension("attn_toy", (toy,), (toy.parent,))
    names = {build.library(extension), build.library(Extension("attn_toy", (toy,), (toy.parent,), cflags=("-O3",)))}
    toy.write_text(TOY.replace("ADDEND", "2"))
    names.add(build.library(extension))
    (toy.parent / "new.h").write_text("")
    names.add(build.library(extension))
    assert len(names) == 4


def test_failed_build_gives_the_compilers_words_once(cache: Path, toy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    toy.write_text("#include <cstdint>\nint broken() { return undeclared_name; }\n")
    extension = Extension("attn_broken", (toy,))
    with pytest.raises(Unavailable, match=r"undeclared_name.* was not declared|undeclared identifier") as caught:
        build.load(extension)
    assert str(caught.value).startswith("attn_broken: its build failed:")
    assert len(str(caught.value).splitlines()) <= 16
    capfd.readouterr()
    with pytest.raises(Unavailable):
        build.load(extension)
    assert capfd.readouterr().err == "", "a failed build must not be tried again"
    assert "undeclared" in (build.why_not(extension) or "")


NVCC_OF_THE_TEST = """#!/bin/sh
case "$*" in
  --version) echo "release $RELEASE" ;;
  *) echo "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized" ;;
esac
"""


@pytest.fixture
def nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that says what ptxas says of serialised products, makes nothing, and ends well."""
    path = tmp_path / "cuda" / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(NVCC_OF_THE_TEST)
    path.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("RELEASE", "13.0")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path / "cuda"))
    return path


def test_serialised_products_fail_the_build_where_they_are_forbidden(cache: Path, tmp_path: Path, nvcc: Path) -> None:
    source = tmp_path / "toy.cu"
    source.write_text("")
    extension = Extension("attn_serialised", (source,), architecture="9.0a", forbidden=build.SERIALISED)
    with pytest.raises(Unavailable, match=r"refused, because nvcc said '\(C7510\) Potential Performance"):
        build.load(extension)
    assert "PYTORCH_NVCC" not in build.os.environ
    # Elsewhere it is no error: what fails then is the linker, which finds no object file.
    allowed = Extension("attn_serialised", (source,), architecture="9.0a")
    with pytest.raises(Unavailable) as caught:
        build.load(allowed)
    assert "refused" not in str(caught.value)


def test_only_hopper_forbids_serialised_products() -> None:
    assert HOPPER.extension.forbidden == build.SERIALISED
    assert ASYNC.extension.forbidden == ""


def test_cache_key_follows_nvccs_version(tmp_path: Path, nvcc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "toy.cu"
    source.write_text("")
    cuda, plain = Extension("attn_toy", (source,), architecture="9.0a"), Extension("attn_toy", ())
    names = []
    for release in ("13.0", "13.0", "13.1"):
        monkeypatch.setenv("RELEASE", release)
        build._nvcc_version.cache_clear()
        names.append((build.library(cuda), build.library(plain)))
    build._nvcc_version.cache_clear()
    assert names[0] == names[1]
    assert names[0][0] != names[2][0]
    assert names[0][1] == names[2][1]


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("CXX", "no-such-compiler", "building it needs a C++ compiler; no-such-compiler is not on PATH"),
        ("PATH", "", "building it needs ninja on PATH"),
    ],
)
def test_probe_says_what_is_missing(
    cache: Path, toy: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(variable, value)
    extension = Extension("attn_toy", (toy,), cflags=("-DNEVER_BUILT",))
    assert (build.why_not(extension) or "").startswith(expected)
    with pytest.raises(Unavailable, match=re.escape(expected)):
        build.load(extension)
    assert not cache.exists()


def test_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    with build._environment(TORCH_CUDA_ARCH_LIST="9.0a"):
        assert build.os.environ["TORCH_CUDA_ARCH_LIST"] == "9.0a"
    assert build.os.environ["TORCH_CUDA_ARCH_LIST"] == "8.0"


def test_implementations_name_their_build() -> None:
    assert tiled_cpu.version().startswith(build.library(CPU.extension).stem)
    assert torch.__version__ in tiled_cpu.version()
    if not torch.cuda.is_available():
        assert tiled_smem.why_unavailable() == "needs a CUDA device"
