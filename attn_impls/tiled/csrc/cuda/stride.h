// How far apart the rows of a tile lie in shared memory, in floats.
#pragma once

#include <cstdint>

#include "../host_device.h"

namespace attn {

// Shared memory has 32 banks of one float. Rows an odd number of floats apart put a column into 32 different banks.
struct OddStride {
  ATTN_HOST_DEVICE static constexpr int64_t of(int64_t head_dim) { return head_dim | 1; }
};

}  // namespace attn
