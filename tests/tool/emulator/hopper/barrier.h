// In place of csrc/hopper/barrier.h: mbarriers by the words of the PTX ISA, and named barriers; who waits polls.
#pragma once

#include <map>

namespace attn {

constexpr int kBarrierBytes = 8;
constexpr int kWarpgroup = 128;

struct NamedBarrier {
  int arrived = 0;
  long generation = 0;
};
inline NamedBarrier named_barriers[16];

struct Mbarrier {
  int count, pending, bytes;
  uint32_t phase;
};
inline std::map<uint32_t, Mbarrier> mbarriers;

inline Mbarrier& mbarrier(uint32_t at) {
  if (!mbarriers.contains(at)) emulator::fail("a barrier that was not made");
  return mbarriers[at];
}
inline void make_barrier(uint32_t at, int arrivals) {
  emulator::at(at, kBarrierBytes);
  mbarriers[at] = {arrivals, arrivals, 0, 0};
  for (auto& barrier : named_barriers) barrier = {};  // a block begins
}
inline void publish_barriers() {}
inline void end_phase_if_complete(Mbarrier& barrier) {
  if (barrier.pending < 0) emulator::fail("more arrivals than a barrier was made for");
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.pending = barrier.count;
  ++barrier.phase;
  ++emulator::progress;
}
inline void arrive_and_expect(uint32_t at, int bytes) {
  Mbarrier& barrier = mbarrier(at);
  barrier.bytes += bytes;
  --barrier.pending;
  end_phase_if_complete(barrier);
}
inline void arrive(uint32_t at) {
  arrive_and_expect(at, 0);
}
constexpr int kWarpArrivals = 1;
inline void arrive_for_warp(uint32_t at) {
  if (threadIdx.x % 32 == 0) arrive(at);
}
inline void bytes_arrived(uint32_t at, int bytes) {
  Mbarrier& barrier = mbarrier(at);
  barrier.bytes -= bytes;
  end_phase_if_complete(barrier);
}
inline void wait_for_phase(uint32_t at, uint32_t parity) {
  // After a failure nobody goes on: what follows could be a loop without end.
  while (mbarrier(at).phase % 2 == parity || !emulator::failure.empty()) emulator::poll();
}

template <int number>
void named_barrier(int threads) {
  NamedBarrier& barrier = named_barriers[number];
  const long generation = barrier.generation;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.generation;
    ++emulator::progress;
  }
  while (barrier.generation == generation || !emulator::failure.empty()) emulator::poll();
}

inline void publish_stores() {}
template <int registers>
void shrink_registers() {}
template <int registers>
void grow_registers() {}
inline int same_for_warp(uint32_t x) {
  return __shfl_sync(0xffffffffu, static_cast<int>(x), 0);
}
inline int one_for_warp(uint32_t x) {
  return same_for_warp(x);
}
inline int warpgroup() {
  return same_for_warp(threadIdx.x / kWarpgroup);
}

}  // namespace attn
