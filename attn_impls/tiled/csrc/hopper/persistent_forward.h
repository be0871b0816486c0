// The kernel of tiled-hopper and its launch, for tiles of any size.
#pragma once

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "forward_launch.h"
#include "persistent_block.h"
#include "persistent_rows.h"
#include "roles.h"

namespace attn {
namespace {

// As in roles.h, but the thread that copies also computes where query tiles lie, and spills where it has 24 registers.
template <int warpgroups>
struct PersistentRegisters : Registers<warpgroups> {};
template <>
struct PersistentRegisters<2> : Trade<2, 40, 232> {};

template <typename T, typename Tiles>
__global__ void __launch_bounds__(kSpecialisedThreads<Tiles>, 1)
    hopper_forward_kernel(const __grid_constant__ PersistentParams<T> p) {
  using Shares = PersistentRegisters<Tiles::kWarpgroups>;
  const PersistentBlock<T, Tiles> block(p);
  block.make_barriers();
  const int group = warpgroup();
  if (group == 0) {
    shrink_registers<Shares::kCopying>();
    if (threadIdx.x == 0) block.copy();
  } else {
    grow_registers<Shares::kComputing>();
    PersistentRows<T, Tiles> rows(block, group - 1);
    if constexpr (Tiles::kOverlaps)
      rows.attend_overlapped();
    else
      rows.attend_in_turn();
  }
}

constexpr int64_t kKeptBytes = int64_t{32} << 20;  // of keys and values stay in the L2 cache of 50 MB beside the rest

// How many heads make about `rounds` rounds of all multiprocessors, one query tile each, and no more than whose keys
// and values stay in the L2 cache; a head where rounds is 0.
inline int64_t heads_of_section(const Shape& shape, int64_t tiles, int multiprocessors, int rounds) {
  const int64_t bytes_of_head = std::max<int64_t>(4 * shape.kv_len * shape.head_dim / shape.group(), 1);
  const int64_t most = std::min(kKeptBytes / bytes_of_head, shape.batch * shape.heads);
  return std::max<int64_t>(std::min((rounds * multiprocessors + tiles / 2) / tiles, most), 1);
}

constexpr int kCounters = 1024;
__device__ int counters[kCounters];

// How tiles follow each other: how many rounds of all multiprocessors make a section, or 0 for sections of one head,
// and whether heads come one by one before the last section.
struct Order {
  int rounds;
  bool leads;
};

// A counter that no kernel uses that may run at the same time: launches of one stream run one after the other, and each
// leaves its counter at 0. Null where that does not hold, as in a graph that is captured here and launched anywhere, or
// where the counters have been given away.
int* counter_of(int device, cudaStream_t stream) {
  if (stream == cudaStreamPerThread) return nullptr;  // a name for many
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  check_cuda(cudaStreamIsCapturing(stream, &capturing), "asking whether a graph is captured");
  if (capturing != cudaStreamCaptureStatusNone) return nullptr;

  static std::mutex mutex;
  static std::map<std::pair<int, cudaStream_t>, int*> given;
  static std::map<int, int> count;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = given.find({device, stream});
  if (found != given.end()) return found->second;
  if (count[device] == kCounters) return nullptr;
  const DeviceGuard guard(device);
  void* first = nullptr;
  check_cuda(cudaGetSymbolAddress(&first, counters), "asking for the counters");
  return given[{device, stream}] = static_cast<int*>(first) + count[device]++;
}

template <typename T, typename Tiles>
void launch_persistent_forward(const Shape& shape, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                               const Tensor& lse, double scale, const Band& band, Order order) {
  const int device = q.get_device_index();
  const int multiprocessors = device_of(q).multiprocessors;
  const int64_t tiles = (shape.q_len + Tiles::kQueries - 1) / Tiles::kQueries, heads = shape.batch * shape.heads;
  ATTN_CHECK(tiles * heads < kFarthest, "the problem has ", tiles * heads, " query tiles, too many to count");
  const bool several = tiles * heads > multiprocessors;  // tiles for a block
  int* const counter = several ? counter_of(device, current_stream(device)) : nullptr;
  int64_t section = heads_of_section(shape, tiles, multiprocessors, order.rounds);
  // Dealing is even when a round forth and one back hold several whole heads, or when all heads are one section.
  if (order.rounds != 0 && counter == nullptr) section = 2 * tiles > multiprocessors ? heads : 1;
  const int64_t led = order.leads && counter != nullptr ? heads - section : 0;
  const Schedule schedule{static_cast<int>(tiles), static_cast<int>(heads), static_cast<int>(section),
                          static_cast<int>(led), counter};
  const PersistentParams<T> params{map_of(q, Tiles::kQueries),
                                   map_of(k, Tiles::kKeys),
                                   map_of(v, Tiles::kKeys),
                                   shape,
                                   view_of<T>(out),
                                   static_cast<float*>(lse.data_ptr()),
                                   static_cast<float>(scale * M_LOG2E),
                                   TileBand::of(band),
                                   schedule};
  using Block = PersistentBlock<T, Tiles>;
  static_assert(Block::kBytes <= 227 * 1024, "more shared memory than a block can have");
  launch(q, several ? multiprocessors : tiles * heads, dim3(kSpecialisedThreads<Tiles>), Block::kBytes,
         hopper_forward_kernel<T, Tiles>, params);
}

}  // namespace
}  // namespace attn
