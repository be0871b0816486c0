// In place of csrc/hopper/bulk_copy.h: a copy is as late as those of tma.h, an addition takes place when it is
// waited for.
#pragma once

#include "barrier.h"

namespace attn {

inline void check_run(const void* global, uint32_t shared, int bytes) {
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0 || shared % 16 != 0 || bytes % 16 != 0) {
    emulator::fail("a run of bytes that is not aligned");
  }
  emulator::at(shared + bytes - 16, 16);
}

inline void start_run_load(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  check_run(from, to, bytes);
  std::memset(emulator::at(to, 16), emulator::kPoison, bytes);
  emulator::later.push_back([=] {
    std::memcpy(emulator::at(to, 16), from, bytes);
    bytes_arrived(barrier, bytes);
  });
}

inline std::array<std::vector<std::function<void()>>, emulator::kMostThreads> additions;  // of each thread

inline void start_run_addition(float* to, uint32_t from, int bytes) {
  check_run(to, from, bytes);
  additions[emulator::current].push_back([=] {
    for (int i = 0; i < bytes / 4; ++i) {
      float x;
      std::memcpy(&x, emulator::at(from + i * 4, 4), 4);
      to[i] += x;
    }
  });
}
inline void wait_for_additions() {
  for (const auto& add : additions[emulator::current]) add();
  additions[emulator::current].clear();
}
inline void wait_for_additions_to_read() {
  wait_for_additions();
}

// Blocks run one after the other, so that what a block waits for has been told, or never will be.
inline void tell(int* count) {
  if (!additions[emulator::current].empty()) emulator::fail("an addition is told of before it is done");
  ++*count;
  ++emulator::progress;
}
inline void wait_until_told(const int* count, int times) {
  while (*count < times && emulator::failure.empty()) emulator::poll();
}

}  // namespace attn
