"""``tiled-smem`` on the GPU where there is one, and everywhere its very source, run thread by thread on the CPU.

The kernel file and its headers are compiled as C++, with two of them replaced: one supplies CUDA's words and runs a
thread block as fibers, the other keeps fp32 only. A warp runs until each of its lanes waits at ``__syncthreads``, and
only then does the next warp start, so a barrier that is missing reads stale tiles and fails the test.
"""

from __future__ import annotations

import shutil

import pytest
import torch

from attn_impls.problem import CAUSAL, FULL, Mask, Problem
from attn_impls.tiled import SMEM, build, ops, tiled_smem, tiled_torch
from attn_impls.tiled.ops import Family

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
#define __launch_bounds__(threads)

struct dim3 { unsigned x = 1, y = 1, z = 1; };
inline dim3 threadIdx, blockIdx;
using std::min;

namespace attn {
namespace {
constexpr int kBlock = 1024, kLanes = 32;
constexpr size_t kStack = 64 * 1024, kPoison = 0xff;  // shared memory starts as NaN
alignas(64) float shared_memory[48 * 1024 / sizeof(float)];

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  bool at_barrier, done;
  float lane_value;
};
std::vector<Fiber> fibers(kBlock);
ucontext_t scheduler;
int current;
std::function<void()> body;

void yield() {
  const int self = current;
  swapcontext(&fibers[self].context, &scheduler);
}
void enter() {
  body();
  fibers[current].done = true;
  yield();
}
void resume(int thread) {
  current = thread;
  threadIdx = dim3{unsigned(thread % kLanes), unsigned(thread / kLanes)};
  swapcontext(&scheduler, &fibers[thread].context);
}
bool runs(int thread) { return !fibers[thread].done && !fibers[thread].at_barrier; }

void run_block() {
  std::memset(shared_memory, kPoison, sizeof(shared_memory));
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack = {fiber.stack.data(), 0, kStack};
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &scheduler;
    fiber.done = fiber.at_barrier = false;
    makecontext(&fiber.context, enter, 0);
  }
  for (bool alive = true; alive;) {
    alive = false;
    for (int warp = 0; warp < kBlock; warp += kLanes) {
      for (bool busy = true; busy;) {
        busy = false;
        for (int thread = warp; thread < warp + kLanes; ++thread) {
          if (runs(thread)) resume(thread), busy = true;
        }
      }
    }
    for (Fiber& fiber : fibers) {
      fiber.at_barrier = false;
      alive |= !fiber.done;
    }
  }
}
}  // namespace

inline void barrier() { fibers[current].at_barrier = true, yield(); }
inline float from_lane(float x, int lane) {
  fibers[current].lane_value = x;
  yield();
  const float value = fibers[current / kLanes * kLanes + lane].lane_value;
  yield();
  return value;
}

template <typename... Args>
void launch(const Tensor&, int64_t blocks, dim3 threads, int64_t bytes, void (*kernel)(Args...), Args... args) {
  STD_TORCH_CHECK(threads.x == kLanes && threads.x * threads.y == kBlock && bytes <= int64_t(sizeof(shared_memory)));
  body = [=] { kernel(args...); };
  for (int64_t block = 0; block < blocks; ++block) blockIdx = dim3{unsigned(block)}, run_block();
}
}  // namespace attn

#define __syncthreads() attn::barrier()
#define __shfl_sync(mask, x, lane) attn::from_lane(x, lane)
#define __shfl_xor_sync(mask, x, step) attn::from_lane(x, threadIdx.x ^ (step))
#define __int_as_float(bits) std::bit_cast<float>(unsigned(bits))
"""
ELEMENT = r"""
#pragma once
namespace attn {
inline float to_float(float x) { return x; }
template <typename T> T from_float(float x) { return x; }
template <typename Body> void with_device_type(const Tensor&, const Body& body) { body(float{}); }
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
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """The operator ``attn_tiled::emulated_forward``: the CUDA source of ``smem_forward``, on CPU tensors."""
    root = tmp_path_factory.mktemp("emulated") / "csrc"
    shutil.copytree(build.CSRC, root)
    kernel = (root / "cuda" / "smem_forward.cu").read_text()
    for old, new in (("(attn_tiled, CUDA,", "(attn_tiled, CPU,"), ('"smem_forward', '"emulated_forward')):
        assert kernel.count(old) == (1 if "CUDA" in old else 2)
        kernel = kernel.replace(old, new)
    (root / "cuda" / "launch.h").write_text(LAUNCH)
    (root / "cuda" / "element.h").write_text(ELEMENT)
    source = root / "cuda" / "emulated.cpp"
    source.write_text(kernel)
    folders = (root, root / "cuda")
    extension = build.Extension("attn_tiled_emulated", (source,), folders, cflags=("-std=c++20", "-O2", "-w"))
    return Family("emulated", extension, backward=False)


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


@pytest.mark.gpu
@pytest.mark.skipif(tiled_smem.why_unavailable("cuda") is not None, reason=str(tiled_smem.why_unavailable("cuda")))
class TestOnTheGPU:
    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)]
    )
    @pytest.mark.parametrize("problem", [*PROBLEMS, Problem(2, 4, 2, 1000, 1030, 64, "fp32", CAUSAL)])
    def test_numbers(self, problem: Problem, dtype: torch.dtype, tolerance: float) -> None:
        qkv = inputs(problem, "cuda", dtype)
        out, lse = tiled_smem(*qkv, problem, return_lse=True)
        assert out.dtype == dtype
        assert_like_algorithm1(out, lse, qkv, problem, tolerance)

    def test_opcheck(self) -> None:
        qkv = inputs(PROBLEMS[0], "cuda", torch.float32)
        ops.load(SMEM)
        torch.library.opcheck(torch.ops.attn_tiled.smem_forward, [*qkv, 0.5, *ops.diagonals(CAUSAL, 40, 70)])

    def test_runs_on_the_current_stream(self) -> None:
        problem = Problem(1, 2, 2, 512, 512, 64, "fp32", CAUSAL)
        qkv = inputs(problem, "cuda", torch.float32)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        tiled_smem(*qkv, problem)  # built before the capture
        with torch.cuda.graph(graph, stream=stream):  # fails for a launch on any other stream, and for a host sync
            captured = tiled_smem(*qkv, problem)
        graph.replay()
        torch.testing.assert_close(captured, tiled_smem(*qkv, problem), rtol=0, atol=0)
