// Which keys a query sees. Every mask of this project is a band of diagonals: key j is visible to query i when
// low <= j - i <= high. The CPU and the CUDA kernels share these tests, so that they cannot disagree on a mask.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace attn {

struct Band {
  int64_t low;
  int64_t high;

  // INT64_MIN and INT64_MAX mean unbounded. Bounds are pulled in to +-2^62, beyond any tensor, so that sums with an
  // index cannot overflow and the tests below need no special case.
  static Band from_diagonals(int64_t low, int64_t high) {
    constexpr int64_t kFar = int64_t{1} << 62;
    return {low < -kFar ? -kFar : low, high > kFar ? kFar : high};
  }

  ATTN_HOST_DEVICE bool sees(int64_t query, int64_t key) const { return low <= key - query && key - query <= high; }

  // Tiles cover queries [q0, q1) and keys [k0, k1), both not empty. Their diagonals run from k0 - (q1 - 1), in the
  // corner of the last query and the first key, to (k1 - 1) - q0.
  ATTN_HOST_DEVICE bool hides_tile(int64_t q0, int64_t q1, int64_t k0, int64_t k1) const {
    return k1 - 1 - q0 < low || k0 - (q1 - 1) > high;
  }
  ATTN_HOST_DEVICE bool shows_tile(int64_t q0, int64_t q1, int64_t k0, int64_t k1) const {
    return k0 - (q1 - 1) >= low && k1 - 1 - q0 <= high;
  }
};

}  // namespace attn
