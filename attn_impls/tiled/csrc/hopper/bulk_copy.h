// TMA without a tensor map: runs of contiguous bytes. Addresses and lengths are multiples of 16 bytes.
#pragma once

#include <cstdint>

namespace attn {

// Start to copy to shared memory; the bytes are counted by the barrier.
__device__ inline void start_run_load(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(barrier)
               : "memory");
}

// Start to add floats in shared memory, which publish_stores() was called for, to those in global memory. The L2 cache
// does the additions, each of them atomic.
__device__ inline void start_run_addition(float* to, uint32_t from, int bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(to)),
      "r"(from), "r"(bytes)
      : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Wait until the additions that this thread started have read their shared memory; until they are done.
__device__ inline void wait_for_additions_to_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ inline void wait_for_additions() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// A count in global memory that blocks pass on to each other. One thread tells that what it waited for is done; another
// waits until enough have told, and what it starts then comes after that. TMA's path to memory is another
// than the thread's, hence the fences.
__device__ inline void tell(int* count) {
  asm volatile("fence.proxy.async.global;" ::: "memory");
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(__cvta_generic_to_global(count)) : "memory");
}
__device__ inline void wait_until_told(const int* count, int times) {
  int told;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(told) : "l"(__cvta_generic_to_global(count)) : "memory");
  } while (told < times);
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

}  // namespace attn
