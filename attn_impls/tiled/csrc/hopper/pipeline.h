// A ring of tiles in shared memory that one thread fills by TMA and warpgroups empty.
#pragma once

#include "barrier.h"

namespace attn {

// Which place of a ring is next, and the parity of the phase that its barriers are in on this way around.
template <int stages>
struct Turn {
  int stage = 0;
  uint32_t parity = 0;

  __device__ static Turn after(uint32_t count) { return {static_cast<int>(count % stages), count / stages % 2}; }
  __device__ void advance() {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// Two barriers for each place: it is full when its bytes have arrived, and empty when every warp is done with them.
template <int stages>
struct Ring {
  static constexpr int kBytes = 2 * stages * kBarrierBytes;
  uint32_t barriers;

  // By one thread. `readers` warps read each tile.
  __device__ void make(int readers) const {
    for (int stage = 0; stage < stages; ++stage) {
      make_barrier(full(stage), 1);
      make_barrier(empty(stage), readers * kWarpArrivals);
    }
  }

  // The filling thread: wait until the place is empty, then announce the bytes of the copies that it starts. The first
  // time around every place is, which is what waiting for the phase before the first gives.
  __device__ void wait_until_empty(Turn<stages> turn) const { wait_for_phase(empty(turn.stage), turn.parity ^ 1); }
  __device__ uint32_t expect(Turn<stages> turn, int bytes) const {
    arrive_and_expect(full(turn.stage), bytes);
    return full(turn.stage);
  }

  // The reading warps. One lane releases the place for its warp, all of which has seen it full and waited for the
  // products that read it.
  __device__ void wait_until_full(Turn<stages> turn) const { wait_for_phase(full(turn.stage), turn.parity); }
  __device__ void release(Turn<stages> turn) const { arrive_for_warp(empty(turn.stage)); }
  // The same where the lanes read the place by loads of their own: all of them come before the one lane's arrival.
  __device__ void release_after_loads(Turn<stages> turn) const {
    __syncwarp();
    release(turn);
  }

 private:
  __device__ uint32_t full(int stage) const { return barriers + stage * kBarrierBytes; }
  __device__ uint32_t empty(int stage) const { return barriers + (stages + stage) * kBarrierBytes; }
};

}  // namespace attn
