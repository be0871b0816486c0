// What stands before and after the products of every backward: a row's numbers, and the rounding of dQ's sums.
#pragma once

#include "backward_params.h"
#include "fragment_softmax.h"

namespace attn {

constexpr int kRowThreads = 8;  // threads that share a row in prepare_rows()
constexpr int kRowsABlock = 16;
constexpr int kElementwiseThreads = kRowThreads * kRowsABlock;

// lse_log2 and delta of the `block`-th rows from dout, out, lse and dlse.
template <typename T>
__device__ inline void prepare_rows(const BackwardParams<T>& p, int block) {
  static_assert(kPaddedRows % kRowsABlock == 0);
  const int blocks_a_head = p.padded / kRowsABlock, heads = static_cast<int>(p.shape.heads);
  const int batch_head = block / blocks_a_head, batch = batch_head / heads;
  const int head = batch_head % heads;
  const int row = block % blocks_a_head * kRowsABlock + threadIdx.x / kRowThreads;
  const int64_t index = static_cast<int64_t>(batch_head) * p.padded + row;
  const int lane = threadIdx.x % kRowThreads;
  const bool exists = row < p.shape.q_len;

  float sum = 0.0f;
  if (exists) {
    const T* out = p.out.row(batch, head, row);
    const T* dout = p.dout.row(batch, head, row);
    for (int d = lane * kChunk; d < p.shape.head_dim; d += kRowThreads * kChunk) {
      const uint4 a = *reinterpret_cast<const uint4*>(out + d), b = *reinterpret_cast<const uint4*>(dout + d);
      const uint32_t left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
      for (int i = 0; i < 4; ++i) {
        const float2 x = unpack<T>(left[i]), y = unpack<T>(right[i]);
        sum += x.x * y.x + x.y * y.y;
      }
    }
  }
  for (int step = 1; step < kRowThreads; step *= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (lane != 0) return;

  const int64_t from = static_cast<int64_t>(batch_head) * p.shape.q_len + row;
  const float lse = exists ? p.lse[from] : minus_infinity();
  const bool sees = lse != minus_infinity();
  p.lse_log2[index] = sees ? lse / kLn2 : -minus_infinity();
  p.delta[index] = !sees ? 0.0f : p.dlse == nullptr ? sum : sum - p.dlse[from];
}

// The `block`-th part of dQ in the tensor's own order and type from the sums, which lie as C fragments. Lanes 4g ...
// 4g + 3 of a fragment hold row g in their first two floats and row g + 8 in the others: a thread takes these 64
// contiguous bytes.
template <typename T, int columns>
__device__ inline void convert_dq(const BackwardParams<T>& p, int block) {
  constexpr int kChunks = columns / kChunk;
  const int64_t index = static_cast<int64_t>(block) * kElementwiseThreads + threadIdx.x;
  const int chunk = static_cast<int>(index % kChunks), g = static_cast<int>(index / kChunks % 8);
  const int64_t piece = index / (kChunks * 8);
  const int pieces_a_head = p.padded / kPiece, batch_head = static_cast<int>(piece) / pieces_a_head;
  const int row = static_cast<int>(piece) % pieces_a_head * kPiece + g, heads = static_cast<int>(p.shape.heads);
  if (batch_head >= p.shape.batch * p.shape.heads || chunk * kChunk >= p.shape.head_dim) return;
  const float4* from = reinterpret_cast<const float4*>(p.dq_sum) + (piece * kChunks + chunk) * kWarp + g * 4;
  uint32_t upper[4], lower[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float4 x = from[i];
    upper[i] = pack<T>(x.x * p.scale, x.y * p.scale);
    lower[i] = pack<T>(x.z * p.scale, x.w * p.scale);
  }
  T* to = p.dq.row(batch_head / heads, batch_head % heads, row) + chunk * kChunk;
  if (row < p.shape.q_len) *reinterpret_cast<uint4*>(to) = uint4{upper[0], upper[1], upper[2], upper[3]};
  to += 8 * p.dq.row_stride;
  if (row + 8 < p.shape.q_len) *reinterpret_cast<uint4*>(to) = uint4{lower[0], lower[1], lower[2], lower[3]};
}

}  // namespace attn
