"""Where there is an nvcc, with or without a GPU, it takes every CUDA source, for the devices that they are for."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from attn_impls import tiled
from attn_impls.tiled import build
from attn_impls.tiled.ops import Family

NVCC = build.cuda_tool("nvcc")
EXTENSIONS = {
    each.extension.name: each.extension
    for each in vars(tiled).values()
    if isinstance(each, Family) and each.extension.uses_cuda
}
# Hopper's own code, and what every device from Ampere on can compile for itself.
HOPPER = ("-gencode", "arch=compute_90a,code=sm_90a")
TARGETS = (*HOPPER, "-gencode", "arch=compute_80,code=compute_80")


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("extension", EXTENSIONS.values(), ids=EXTENSIONS)
def test_compiles_without_spills(extension: build.Extension, tmp_path: Path) -> None:
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    targets = HOPPER if extension.architecture == "9.0a" else TARGETS
    flags = [*includes, *cpp_extension.COMMON_NVCC_FLAGS, *extension.cuda_cflags, *targets, "-Xptxas", "-v"]

    def compile_one(source: Path) -> str:
        command = [str(NVCC), "-c", *flags, str(source), "-o", str(tmp_path / f"{source.stem}.o")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    sources = [source for source in extension.sources if source.suffix == ".cu"]
    kernels = 0
    with ThreadPoolExecutor(2) as pool:
        for source, said in zip(sources, pool.map(compile_one, sources), strict=True):
            spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
            assert not re.findall(build.SERIALISED, said), f"{source.name}:\n{said}"
            assert set(spills) <= {("0", "0")}, f"{source.name} spills registers:\n{said}"
            kernels += len(spills)
    assert kernels, f"ptxas says nothing of {extension.name}"
