"""The CUDA rungs on the GPU where there is one, and everywhere their very sources, run thread by thread on the CPU.

The kernel files and their headers are compiled as C++, with three of them replaced: one supplies CUDA's words and runs
a thread block as fibers, one holds its shared memory, one keeps fp32 only. A warp runs until each of its lanes waits at
``__syncthreads``, and only then does the next warp start, so a barrier that is missing reads stale tiles and fails the
test.
"""

from __future__ import annotations

import shutil

import pytest
import torch

from attn_impls.implementation import Implementation
from attn_impls.problem import CAUSAL, FULL, Mask, Problem
from attn_impls.registry import discover
from attn_impls.tiled import build, ops, tiled_torch
from attn_impls.tiled.ops import Family
from tests.tool.emulation import register_on_the_cpu

# In the order of the climb.
FP32_RUNGS = ("global", "smem", "pad", "coalesced", "unroll", "regs")

LAUNCH = r"""
#pragma once
#include <ucontext.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "../arguments.h"
#include "element.h"

#define __global__
#define __device__
#define __shared__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim;
using std::min;

namespace attn {
// What a block may ask for on compute capability 8.6, the least of those that the rungs are for.
alignas(64) inline float memory_of_block[99 * 1024 / sizeof(float)];

namespace emulation {
constexpr int kMostThreads = 1024, kLanes = 32;
constexpr size_t kStack = 64 * 1024, kPoison = 0xff;  // shared memory starts as NaN

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  bool at_barrier, done;
  float lane_value;
};
inline std::vector<Fiber> fibers(kMostThreads);
inline ucontext_t scheduler;
inline int current, threads_of_block;
inline std::function<void()> body;

inline void yield() {
  const int self = current;
  swapcontext(&fibers[self].context, &scheduler);
}
inline void enter() {
  body();
  fibers[current].done = true;
  yield();
}
inline void resume(int thread) {
  current = thread;
  threadIdx = dim3(thread % blockDim.x, thread / blockDim.x);
  swapcontext(&scheduler, &fibers[thread].context);
}
inline bool runs(int thread) { return !fibers[thread].done && !fibers[thread].at_barrier; }

inline void run_block() {
  std::memset(memory_of_block, kPoison, sizeof(memory_of_block));
  for (int thread = 0; thread < threads_of_block; ++thread) {
    Fiber& fiber = fibers[thread];
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.data(), 0, kStack};
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &scheduler;
    fiber.done = fiber.at_barrier = false;
    makecontext(&fiber.context, enter, 0);
  }
  for (bool alive = true; alive;) {
    alive = false;
    for (int warp = 0; warp < threads_of_block; warp += kLanes) {
      for (bool busy = true; busy;) {
        busy = false;
        for (int thread = warp; thread < warp + kLanes; ++thread) {
          if (runs(thread)) resume(thread), busy = true;
        }
      }
    }
    for (int thread = 0; thread < threads_of_block; ++thread) {
      fibers[thread].at_barrier = false;
      alive |= !fibers[thread].done;
    }
  }
}

inline void barrier() { fibers[current].at_barrier = true, yield(); }
inline float from_lane(float x, int lane) {
  fibers[current].lane_value = x;
  yield();
  const float value = fibers[current / kLanes * kLanes + lane].lane_value;
  yield();
  return value;
}
}  // namespace emulation

template <typename... Args>
void launch(const Tensor&, int64_t blocks, dim3 threads, int64_t bytes, void (*kernel)(Args...), Args... args) {
  emulation::threads_of_block = threads.x * threads.y;
  STD_TORCH_CHECK(emulation::threads_of_block <= emulation::kMostThreads && bytes <= int64_t(sizeof(memory_of_block)));
  blockDim = threads;
  emulation::body = [=] { kernel(args...); };
  for (int64_t block = 0; block < blocks; ++block) blockIdx = dim3(block), emulation::run_block();
}
}  // namespace attn

#define __syncthreads() attn::emulation::barrier()
#define __shfl_sync(mask, x, lane) attn::emulation::from_lane(x, lane)
#define __shfl_xor_sync(mask, x, step) attn::emulation::from_lane(x, attn::emulation::current % 32 ^ (step))
#define __int_as_float(bits) std::bit_cast<float>(unsigned(bits))
"""
ELEMENT = r"""
#pragma once
#include <cstdint>
struct alignas(16) float4 { float x, y, z, w; };
namespace attn {
inline float to_float(float x) { return x; }
template <typename T> T from_float(float x) { return x; }
template <typename Body> void with_device_type(const Tensor&, const Body& body) { body(float{}); }
inline float4 load_four(const float* from) { return *reinterpret_cast<const float4*>(from); }
inline bool loads_of_four(const float* first, int64_t row_stride, int head_dim) {
  return reinterpret_cast<uintptr_t>(first) % 16 == 0 && row_stride % 4 == 0 && head_dim % 4 == 0;
}
}  // namespace attn
"""

SHARED_MEMORY = r"""
#pragma once
namespace attn {
inline float* shared_memory() { return memory_of_block; }
}  // namespace attn
"""

PROBLEMS = [
    Problem(2, 2, 1, 40, 70, 24, "fp32", CAUSAL),
    Problem(1, 1, 1, 33, 32, 128, "fp32", FULL),
    Problem(1, 1, 1, 70, 33, 40, "fp32", CAUSAL),  # empty rows
    Problem(1, 2, 2, 65, 97, 1, "fp32", Mask("window", 3, 2)),
    Problem(1, 1, 1, 31, 65, 65, "fp32", Mask("causal_top_left")),
    Problem(0, 2, 2, 5, 5, 8, "fp32", CAUSAL),
]


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> build.Extension:
    """The operators ``attn_tiled::emulated_<rung>_forward``: the rungs' CUDA sources, on CPU tensors."""
    root = tmp_path_factory.mktemp("emulated") / "csrc"
    cuda = root / "cuda"
    shutil.copytree(build.CSRC, root)
    (cuda / "launch.h").write_text(LAUNCH)
    (cuda / "element.h").write_text(ELEMENT)
    (cuda / "shared_memory.h").write_text(SHARED_MEMORY)
    register_on_the_cpu(cuda / "register_forward.h")
    for rung in FP32_RUNGS:
        (cuda / f"{rung}_forward.cpp").write_text('#include "launch.h"\n' + (cuda / f"{rung}_forward.cu").read_text())
    sources = tuple(cuda / f"{rung}_forward.cpp" for rung in FP32_RUNGS)
    return build.Extension("attn_tiled_emulated", sources, (root, cuda), cflags=("-std=c++20", "-O2", "-w"))


@pytest.fixture(params=FP32_RUNGS)
def emulated(request: pytest.FixtureRequest, extension: build.Extension) -> Family:
    return Family(f"emulated_{request.param}", extension, backward=False)


def inputs(problem: Problem, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((problem.heads, problem.q_len), *[(problem.kv_heads, problem.kv_len)] * 2)
    return tuple(
        torch.randn(problem.batch, length, heads, problem.head_dim, generator=generator)
        .transpose(1, 2)
        .to(device, dtype)
        for heads, length in sizes
    )


def assert_like_algorithm1(
    out: torch.Tensor, lse: torch.Tensor, qkv: tuple[torch.Tensor, ...], problem: Problem, tolerance: float
) -> None:
    expected, expected_lse = tiled_torch(*(x.double() for x in qkv), problem, return_lse=True)
    assert out.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_source_runs_right_on_the_cpu(emulated: Family, problem: Problem) -> None:
    qkv = inputs(problem, "cpu", torch.float32)
    low, high = ops.diagonals(problem.mask, problem.q_len, problem.kv_len)
    out, lse = ops.attention(emulated, *qkv, problem.softmax_scale, low, high)
    assert_like_algorithm1(out, lse, qkv, problem, 1e-5)


def test_source_refuses_a_head_dim_beyond_shared_memory(emulated: Family) -> None:
    qkv = (torch.zeros(1, 1, 4, 129),) * 3
    with pytest.raises(RuntimeError, match="head_dim must be at most 128, got 129"):
        ops.attention(emulated, *qkv, 1.0, *ops.diagonals(FULL, 4, 4))


def test_source_reads_rows_that_no_wide_load_can(emulated: Family) -> None:
    problem = Problem(1, 2, 2, 40, 40, 32, "fp32", CAUSAL)
    generator = torch.Generator().manual_seed(0)
    # Rows of 3 * 32 + 1 numbers that begin at an odd one: no 16-byte boundary anywhere.
    packed = torch.randn(1, 2, 40, 97, generator=generator)
    qkv = tuple(packed[..., 1 + 32 * i : 33 + 32 * i] for i in range(3))
    out, lse = ops.attention(emulated, *qkv, problem.softmax_scale, *ops.diagonals(CAUSAL, 40, 40))
    expected, expected_lse = tiled_torch(*(x.double() for x in qkv), problem, return_lse=True)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


RUNGS = [discover()[f"tiled-{rung}"] for rung in FP32_RUNGS]
MISSING = RUNGS[0].why_unavailable("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
class TestOnTheGPU:
    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)]
    )
    @pytest.mark.parametrize("problem", [*PROBLEMS, Problem(2, 4, 2, 1000, 1030, 64, "fp32", CAUSAL)])
    def test_numbers(self, rung: Implementation, problem: Problem, dtype: torch.dtype, tolerance: float) -> None:
        qkv = inputs(problem, "cuda", dtype)
        out, lse = rung(*qkv, problem, return_lse=True)
        assert out.dtype == dtype
        assert_like_algorithm1(out, lse, qkv, problem, tolerance)

    def test_opcheck(self, rung: Implementation) -> None:
        problem = PROBLEMS[0]
        qkv = inputs(problem, "cuda", torch.float32)
        rung(*qkv, problem)
        operator = getattr(torch.ops.attn_tiled, f"{rung.name.removeprefix('tiled-')}_forward")
        torch.library.opcheck(operator, [*qkv, 0.5, *ops.diagonals(problem.mask, problem.q_len, problem.kv_len)])

    def test_runs_on_the_current_stream(self, rung: Implementation) -> None:
        problem = Problem(1, 2, 2, 512, 512, 64, "fp32", CAUSAL)
        qkv = inputs(problem, "cuda", torch.float32)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        rung(*qkv, problem)  # built before the capture
        with torch.cuda.graph(graph, stream=stream):  # fails for a launch on any other stream, and for a host sync
            captured = rung(*qkv, problem)
        graph.replay()
        torch.testing.assert_close(captured, rung(*qkv, problem), rtol=0, atol=0)
