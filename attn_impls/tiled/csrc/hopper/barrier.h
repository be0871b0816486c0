// Who waits for whom: mbarriers in shared memory, named barriers, and the registers that warpgroups trade.
//
// An mbarrier is 8 bytes of shared memory. Its phase ends when as many arrivals as it was made for have come, and all
// bytes that were announced to it; then the next begins. Whoever waits names the phase by its parity: the wait is over
// when the phase of that parity has ended. A new barrier is in its phase 0, so a wait for parity 1, that of the phase
// before the first, is over at once. Only the phase that runs and the one before it can be told apart: no lane may
// arrive for its warp before all of the warp have seen the last phase end.
#pragma once

#include <cstdint>

namespace attn {

constexpr int kBarrierBytes = 8;
constexpr int kWarpgroup = 128;  // threads: four warps, the first of which has a number divisible by 4

__device__ inline void make_barrier(uint32_t at, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
// Of the thread that made barriers, before the __syncthreads() after which others, and TMA, use them.
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void arrive(uint32_t at) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}

// A warp's arrivals: one, of its first lane. compute-sanitizer's racecheck reports hazards of what the other lanes read
// before, whether or not a __syncwarp() comes between (tests/tool/hopper/racecheck.cu). In a build for it every lane
// arrives for itself.
#ifdef ATTN_EVERY_LANE_ARRIVES
constexpr int kWarpArrivals = 32;
#else
constexpr int kWarpArrivals = 1;
#endif
__device__ inline void arrive_for_warp(uint32_t at) {
  if (threadIdx.x % 32 < kWarpArrivals) arrive(at);
}

// Arrive, and announce `bytes` that copies will bring in this phase.
__device__ inline void arrive_and_expect(uint32_t at, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}

__device__ inline bool phase_has_ended(uint32_t at, uint32_t parity) {
  uint32_t ended;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.b32 %0, 1, 0, p;\n"
      "}"
      : "=r"(ended)
      : "r"(at), "r"(parity)
      : "memory");
  return ended != 0;
}

// try_wait sleeps for a while by itself, so that the loop takes hardly any turns.
__device__ inline void wait_for_phase(uint32_t at, uint32_t parity) {
  while (!phase_has_ended(at, parity)) {
  }
}

// A barrier of the hardware's for `threads` threads, all of which wait; 0 is that of __syncthreads(). Its number stands
// in the instruction: for one in a register ptxas reserves all 16.
template <int number>
__device__ inline void named_barrier(int threads) {
  asm volatile("bar.sync %0, %1;" ::"n"(number), "r"(threads) : "memory");
}

// Ordinary stores to shared memory before this are seen by what reads it past the threads' own path: TMA and
// wgmma. Of every thread that stored, before the barrier that tells the reader.
__device__ inline void publish_stores() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Give back registers beyond `registers` a thread, or wait until as many are free. All warps of a warpgroup call it.
template <int registers>
__device__ inline void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ inline void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

// A number that is the same for the whole warp; the compiler must be told, or it takes every branch on it for one that
// parts the warp.
__device__ inline int same_for_warp(uint32_t x) {
  return __shfl_sync(0xffffffffu, static_cast<int>(x), 0);
}
// The same, in a register that the warp has once, as descriptors of products need it. In loops within loops ptxas holds
// it in every lane otherwise, and moves every descriptor.
__device__ inline int one_for_warp(uint32_t x) {
  return static_cast<int>(__reduce_max_sync(0xffffffffu, x));
}
// The number of this thread's warpgroup.
__device__ inline int warpgroup() {
  return same_for_warp(threadIdx.x / kWarpgroup);
}

}  // namespace attn
