// CUDA's words in plain C++, included before every file of a kernel: a thread block runs as fibers on one CPU thread.
//
// A warp runs until each of its lanes waits at __syncthreads, and only then does the next warp start, so that a missing
// barrier reads what is not there yet, or what the next copy has overwritten. Shared memory starts as NaN. The lanes of
// a warp meet at warp-wide instructions; the last to arrive computes for all.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline

using __half = torch::headeronly::Half;
using __nv_bfloat16 = torch::headeronly::BFloat16;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
struct uint4 {
  uint32_t x, y, z, w;
};
inline dim3 threadIdx, blockIdx, gridDim;
using std::max;
using std::min;

namespace emulator {

constexpr int kLanes = 32, kMostThreads = 640, kSharedBytes = 227 * 1024;
constexpr size_t kStack = 128 * 1024;
constexpr int kPoison = 0xff;  // a NaN in every type
alignas(1024) inline unsigned char shared_memory[kSharedBytes];

struct Copy {
  uint32_t to;
  const void* from;
  bool valid;
};
struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  bool done, at_barrier, waits_for_warp, polls;
  const void* instruction;  // which warp-wide instruction it waits at, and with what
  void* argument;
  std::vector<std::vector<Copy>> groups;                     // of copies; the last is not committed yet
  std::vector<std::vector<std::function<void()>>> products;  // of wgmma, likewise
};
inline std::vector<Fiber> fibers(kMostThreads);
inline ucontext_t scheduler;
inline int current;
inline std::function<void()> body;
inline std::string failure;
inline long progress;  // of threads that poll: a pass over all threads without any would be followed by the same again
inline std::vector<std::function<void()>> later;  // what TMA does at the end of a pass

inline void fail(const std::string& what) {
  if (failure.empty()) failure = what;
}

inline void yield() {
  const int self = current;
  swapcontext(&fibers[self].context, &scheduler);
}
// Come back when all other threads have run.
inline void poll() {
  fibers[current].polls = true;
  yield();
}
inline void enter() {
  body();
  fibers[current].done = true;
  yield();
}

inline void run_block(int threads, int64_t bytes) {
  std::memset(shared_memory, kPoison, sizeof(shared_memory));
  for (int thread = 0; thread < threads; ++thread) {
    Fiber& fiber = fibers[thread];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &scheduler;
    fiber.done = fiber.at_barrier = fiber.waits_for_warp = fiber.polls = false;
    fiber.groups.assign(1, {});
    fiber.products.assign(1, {});
    makecontext(&fiber.context, enter, 0);
  }
  for (bool alive = true; alive;) {
    alive = false;
    bool all_done = true, all_wait = true, polled = false;
    const long before = progress;
    for (int warp = 0; warp < threads; warp += kLanes) {
      for (bool busy = true; busy;) {
        busy = false;
        for (int thread = warp; thread < warp + kLanes; ++thread) {
          Fiber& fiber = fibers[thread];
          if (fiber.done || fiber.at_barrier || fiber.waits_for_warp || fiber.polls) continue;
          current = thread;
          threadIdx = dim3{unsigned(thread)};
          swapcontext(&scheduler, &fiber.context);
          busy = true;
        }
      }
    }
    for (auto& work : std::exchange(later, {})) work();
    for (int thread = 0; thread < threads; ++thread) {
      polled |= fibers[thread].polls;
      fibers[thread].polls = false;
    }
    if (polled) {
      alive = failure.empty();
      if (progress == before) return fail("threads wait for ever");
      continue;
    }
    for (int thread = 0; thread < threads; ++thread) {
      Fiber& fiber = fibers[thread];
      if (fiber.waits_for_warp) {
        fail("a warp-wide instruction is reached by some lanes only");
        return;
      }
      all_done &= fiber.done;
      all_wait &= fiber.at_barrier;
      fiber.at_barrier = false;
      alive |= !fiber.done;
    }
    if (!all_done && !all_wait) fail("a barrier is reached by some threads only");
  }
  for (int thread = 0; thread < threads; ++thread) {
    for (const auto& group : fibers[thread].groups) {
      if (!group.empty()) fail("a copy is still under way at the end of the block");
    }
    for (const auto& group : fibers[thread].products) {
      if (!group.empty()) fail("a product is still under way at the end of the block");
    }
  }
  for (int64_t i = bytes; i < kSharedBytes; ++i) {
    if (shared_memory[i] != kPoison) return fail("a write past the end of shared memory");
  }
}

// Meet the other lanes; the last one calls compute(arguments of all lanes).
template <typename Argument, typename Compute>
void with_warp(const void* instruction, Argument& argument, const Compute& compute) {
  const int warp = current / kLanes * kLanes, self = current;
  fibers[self].instruction = instruction;
  fibers[self].argument = &argument;
  fibers[self].waits_for_warp = true;
  bool all = true;
  for (int thread = warp; thread < warp + kLanes; ++thread) all &= fibers[thread].waits_for_warp;
  if (!all) return yield();
  Argument* arguments[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    if (fibers[warp + lane].instruction != instruction) return fail("lanes meet at different instructions"), yield();
    arguments[lane] = static_cast<Argument*>(fibers[warp + lane].argument);
  }
  compute(arguments);
  for (int thread = warp; thread < warp + kLanes; ++thread) fibers[thread].waits_for_warp = false;
}

template <typename T>
T from_lane(T x, int lane) {
  static const char instruction = 0, end = 0;
  T given = x;
  with_warp(&instruction, given, [](T**) {});
  // Each lane's choice may differ in principle, so every lane takes for itself while all values still stand.
  x = *static_cast<T*>(fibers[current / kLanes * kLanes + lane].argument);
  with_warp(&end, given, [](T**) {});
  return x;
}
inline bool any_lane(bool x) {
  static const char instruction = 0;
  int answer = x;
  with_warp(&instruction, answer, [](int** lanes) {
    const bool any = std::any_of(lanes, lanes + kLanes, [](const int* lane) { return *lane != 0; });
    for (int lane = 0; lane < kLanes; ++lane) *lanes[lane] = any;
  });
  return answer != 0;
}
inline void meet_warp() {
  static const char instruction = 0;
  char nothing = 0;
  with_warp(&instruction, nothing, [](char**) {});
}
inline void barrier() {
  fibers[current].at_barrier = true;
  yield();
}

inline unsigned char* at(uint32_t offset, int size) {
  if (offset % size != 0) fail("a misaligned access to shared memory");
  if (offset + size > kSharedBytes) {
    fail("an access past the end of shared memory");
    offset = 0;
  }
  return shared_memory + offset;
}
inline void run_copy(const Copy& copy) {
  if (copy.valid) {
    std::memcpy(at(copy.to, 16), copy.from, 16);
  } else {
    std::memset(at(copy.to, 16), 0, 16);
  }
}

}  // namespace emulator

inline int atomicAdd(int* to, int x) {
  return std::exchange(*to, *to + x);
}

#define __syncthreads() emulator::barrier()
#define __syncwarp() emulator::meet_warp()
#define __shfl_xor_sync(mask, x, step) emulator::from_lane(x, emulator::current % emulator::kLanes ^ (step))
#define __shfl_sync(mask, x, lane) emulator::from_lane(x, lane)
#define __any_sync(mask, x) emulator::any_lane(x)
#define __float_as_uint(x) std::bit_cast<uint32_t>(x)
#define __int_as_float(bits) std::bit_cast<float>(unsigned(bits))
