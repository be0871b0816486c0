// Tasks of unequal size on PyTorch's own threads: whoever is free takes the next one.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>

namespace attn {

// Call body(task, slot) for every task in [0, count). Tasks start in order, so the heaviest should come first. `slot`
// numbers the workers, from 0 to worker_count() - 1: no two calls that run at the same time have the same slot.
template <typename Body>
void run_tasks(int64_t count, int64_t workers, const Body& body) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      for (int64_t task = next.fetch_add(1); task < count; task = next.fetch_add(1)) body(task, slot);
    }
  });
}

// As many workers as torch.get_num_threads() says, but no more than there are tasks.
inline int64_t worker_count(int64_t tasks) {
  const int64_t threads = torch::stable::get_num_threads();
  return tasks < threads ? (tasks < 1 ? 1 : tasks) : threads;
}

}  // namespace attn
