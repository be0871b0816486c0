"""The forward kernel of ``tiled-async`` with other tiles than the product's, and how to build and time them.

``python reports/h100/ladder/tuning/forward.py`` builds all, checks each against flash-attn, times them in turns with it
and prints the ratios. ``README.md`` says what each should bring.
"""

from __future__ import annotations

import itertools
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]
sys.path.insert(0, str(ROOT))  # run as a script from anywhere

from attn_impls.tiled import build  # noqa: E402

SPILL = re.compile(r"REG:(\d+) STACK:(\d+)")


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel to time.

    Attributes:
        name: its operator, ``attn_tuning::<name>``.
        tiles: the arguments of ``ForwardTiles``, the first of which is the head dimension.
    """

    name: str
    tiles: str

    @property
    def head_dim(self) -> int:
        """The widest head that its tiles hold."""
        return int(self.tiles.split(",")[0])


# columns, row pieces a warp, warps, keys a tile, blocks a multiprocessor
VARIANTS = (
    Variant("fused_64_k64", "64, 2, 4, 64, 2"),
    Variant("fused_64_k96", "64, 2, 4, 96, 2"),
    Variant("fused_64_k128", "64, 2, 4, 128, 2"),
    Variant("fused_64_r48_k64", "64, 3, 4, 64, 2"),
    Variant("fused_128_k32", "128, 2, 4, 32, 2"),
    Variant("fused_128_k48", "128, 2, 4, 48, 2"),
    Variant("fused_128_k64", "128, 2, 4, 64, 2"),
)
SOURCE = """#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>

#include "async_forward.h"
#include "tensor_core_arguments.h"

namespace attn {{
struct {name} : ForwardTiles<{tiles}> {{}};

static std::tuple<Tensor, Tensor> run_{name}(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                                             int64_t low, int64_t high) {{
  const Shape shape = check_inputs(q, k, v, scale);
  Tensor out = empty_in_order_of(q), lse = empty_lse(q);
  with_half_type(q, [&](auto element) {{
    using T = decltype(element);
    if constexpr ({half} || std::is_same_v<T, __nv_bfloat16>) {{
      const ForwardParams<T> params{{shape, view_of<const T>(q), view_of<const T>(k), view_of<const T>(v),
                                    view_of<T>(out), static_cast<float*>(lse.data_ptr()),
                                    static_cast<float>(scale * M_LOG2E), Band::from_diagonals(low, high)}};
      launch_async_forward<T, {name}>(q, params);
    }} else {{
      STD_TORCH_CHECK(false, "built for bfloat16 only");
    }}
  }});
  return {{out, lse}};
}}
}}  // namespace attn
STABLE_TORCH_LIBRARY_FRAGMENT(attn_tuning, library) {{
  library.def("{name}(Tensor q, Tensor k, Tensor v, float scale, int low, int high) -> (Tensor out, Tensor lse)");
}}
STABLE_TORCH_LIBRARY_IMPL(attn_tuning, {device}, library) {{
  library.impl("{name}", TORCH_BOX(&attn::run_{name}));
}}
"""


def source(variant: Variant, *, device: str = "CUDA", half: bool = False) -> str:
    """Return the source of the variant's operator on ``device``, for bfloat16 and, where ``half``, float16."""
    return SOURCE.format(name=variant.name, tiles=variant.tiles, device=device, half=str(half).lower())


def load(folder: Path) -> dict[str, str]:
    """Build and load all variants in ``folder``; return what ``cuobjdump`` says of each: registers and stack."""
    from torch.utils import cpp_extension

    sources = [folder / f"{variant.name}.cu" for variant in VARIANTS]
    for path, variant in zip(sources, VARIANTS, strict=True):
        path.write_text(source(variant))
    start = time.perf_counter()
    cpp_extension.load(
        name="attn_tuning",
        sources=[str(path) for path in sources],
        build_directory=str(folder),
        with_cuda=True,
        is_python_module=False,
        extra_include_paths=[str(build.CSRC), str(build.CSRC / "cuda"), str(HERE)],
        extra_cuda_cflags=["-std=c++20", "-O3", "-DUSE_CUDA", "-Xcompiler", "-fvisibility=hidden"],
    )
    print(f"built {len(sources)} variants in {time.perf_counter() - start:.0f} s", flush=True)
    tool = build.cuda_tool("cuobjdump")
    if tool is None:
        return {}
    command = [tool, "--dump-resource-usage", str(folder / "attn_tuning.so")]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    usage = {}
    for line, after in itertools.pairwise(lines):
        found = SPILL.search(after)
        for variant in VARIANTS:
            # In a mangled name the length of each word stands before it.
            if found and f"{len(variant.name)}{variant.name}E" in line:
                usage[variant.name] = f"{found[1]} registers, {found[2]} bytes of stack"
    return usage


def seconds(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median time of each call on the device, taken in turns, with L2 flushed before each."""
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    taken: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in calls}
    for turn in range(2 + repeats):
        for name, call in calls.items():
            flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            if turn >= 2:
                taken[name].append((begin, end))
    torch.cuda.synchronize()
    return {name: statistics.median(a.elapsed_time(b) for a, b in pairs) / 1e3 for name, pairs in taken.items()}


def main() -> None:
    """Time every variant at head dims 64 and 128 over fa-paper's lengths and print its ratio to flash-attn."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "/tmp/attn_tuning")
    folder.mkdir(parents=True, exist_ok=True)
    usage = load(folder)
    from flash_attn.flash_attn_interface import _flash_attn_forward

    far = 2**63 - 1
    tflops: dict[int, dict[str, dict[str, float]]] = {64: {}, 128: {}}
    for d, rows in tflops.items():
        for length, causal in [(s, c) for s in (512, 1024, 4096, 16384) for c in (False, True)]:
            batch, heads, cell = 16384 // length, 2048 // d, f"{length}{'c' if causal else ''}"
            torch.manual_seed(0)
            q, k, v = (torch.randn(batch, length, heads, d, device="cuda", dtype=torch.bfloat16) for _ in range(3))
            views, scale, high = [x.transpose(1, 2) for x in (q, k, v)], d**-0.5, 0 if causal else far

            flash = partial(_flash_attn_forward, q, k, v, 0.0, scale, causal, -1, -1, 0.0, None, False)
            out, lse = flash()[:2]
            calls: dict[str, Callable[[], object]] = {"flash-attn": flash}
            for variant in VARIANTS:
                if variant.head_dim != d:
                    continue
                operator = getattr(torch.ops.attn_tuning, variant.name)
                got, got_lse = operator(*views, scale, -far - 1, high)
                error = (got.transpose(1, 2) - out).abs().max().item()
                lse_error = (got_lse - lse).abs().max().item()
                if not (error < 2e-2 and lse_error < 1e-3):
                    print(f"WRONG {variant.name} at {cell}: out off by {error:.2g}, lse by {lse_error:.2g}")
                calls[variant.name] = partial(operator, *views, scale, -far - 1, high)
            flops = 4 * batch * heads * length * length * d * (0.5 if causal else 1)
            # Short cells take a fraction of a millisecond and vary most.
            for name, t in seconds(calls, 15 if length <= 4096 else 9).items():
                rows.setdefault(name, {})[cell] = flops / t / 1e12
        base = rows["flash-attn"]
        print(f"\nd{d}: ratio to flash-attn (mean of all, full, causal; least); TFLOP/s at {' '.join(base)}")
        table = []
        for name, cells in rows.items():
            ratios = {cell: cells[cell] / base[cell] for cell in base}
            means = [
                statistics.geometric_mean(r for cell, r in ratios.items() if kind in (None, cell.endswith("c")))
                for kind in (None, False, True)
            ]
            numbers = " ".join(f"{cells[cell]:5.0f}" for cell in base)
            text = " ".join(f"{mean:.3f}" for mean in (*means, min(ratios.values())))
            table.append((means[0], f"  {text}  {numbers}  {name}  {usage.get(name, '')}"))
        print("\n".join(line for _, line in sorted(table, reverse=True)), flush=True)


if __name__ == "__main__":
    main()
