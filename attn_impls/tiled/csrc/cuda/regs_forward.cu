// tiled-regs: register tiles. The shape of a fast matrix product, twice.
//
// What:  a block of 128 threads owns 64 queries and takes 64 keys at a time. A thread computes 8 x 4 scores, of
//        queries group + 8 * i and keys lane + 16 * j, and 8 queries' share of the output: 16 lanes hold a row. K and
//        then V pass through one buffer; weights go from one product to the other through shared memory, among the
//        threads of a warp. Every read of shared memory is 16 bytes wide.
// Why:   four numbers of 8 queries and of 4 keys, 12 loads, feed 128 multiply-adds; in tiled-unroll, 5 loads feed 4.
//        What a thread has loaded is used again from its registers.
// Limit: the fp32 units themselves: the shared-memory reads of a step take fewer turns than its multiply-adds. A
//        copy is waited for before it is used. head_dim is rounded up to 64 or 128. Next: tensor cores.
//
// Distances between rows are chosen for the banks. K and Q rows are head_dim + 4 floats apart: eight lanes that read
// 16 bytes each of eight rows then cover all 32 banks. Rows of weights are 80 apart: the two rows that a warp writes
// at a time fall into different halves of the banks.
#include "block.h"
#include "element.h"
#include "forward_op.h"
#include "online_softmax.h"
#include "shared_memory.h"
#include "warp.h"

namespace attn {
namespace {

constexpr int kQueries = 64, kKeys = 64;  // a tile
constexpr int kThreads = 128;
constexpr int kLanes = 16;                  // threads that share a row
constexpr int kGroups = kThreads / kLanes;  // rows that are worked on side by side
constexpr int kRows = kQueries / kGroups;   // queries a thread
constexpr int kScores = kKeys / kLanes;     // keys a thread, for each of its queries
constexpr int kWeightStride = kKeys + kLanes;

// Copy rows [begin, end) of one head to a tile of 64 rows of kWidth numbers, kWidth + 4 apart. The rest becomes 0.
template <int kWidth, typename T>
__device__ void copy_tile(const View<const T>& from, int64_t batch, int64_t head, int64_t begin, int64_t end,
                          int head_dim, float* tile) {
  const T* first = from.row(batch, head, begin);
  const int count = static_cast<int>(end - begin);
  const bool fours = loads_of_four(first, from.row_stride, head_dim);
#pragma unroll 4
  for (int i = threadIdx.x; i < kQueries * kWidth / 4; i += kThreads) {
    const int row = i / (kWidth / 4), d = i % (kWidth / 4) * 4;
    const T* source = first + row * from.row_stride + d;
    float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
    if (row < count) {
      if (fours) {
        if (d < head_dim) x = load_four(source);
      } else {
        if (d < head_dim) x.x = to_float(source[0]);
        if (d + 1 < head_dim) x.y = to_float(source[1]);
        if (d + 2 < head_dim) x.z = to_float(source[2]);
        if (d + 3 < head_dim) x.w = to_float(source[3]);
      }
    }
    *reinterpret_cast<float4*>(tile + row * (kWidth + 4) + d) = x;
  }
}

__device__ inline float4 shared_four(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}

__device__ inline void add_product(float& sum, float4 a, float4 b) {
  sum += a.x * b.x;
  sum += a.y * b.y;
  sum += a.z * b.z;
  sum += a.w * b.w;
}

__device__ inline void add_scaled(float4& sum, float factor, float4 x) {
  sum.x += factor * x.x;
  sum.y += factor * x.y;
  sum.z += factor * x.z;
  sum.w += factor * x.w;
}

__device__ inline float row_max(float x) {
  for (int step = kLanes / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

__device__ inline float row_sum(float x) {
  for (int step = kLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

template <int kWidth>
constexpr int64_t shared_bytes() {
  return ((kQueries + kKeys) * (kWidth + 4) + kQueries * kWeightStride) * static_cast<int64_t>(sizeof(float));
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) regs_forward_kernel(ForwardParams<T> p) {
  constexpr int kStride = kWidth + 4;
  constexpr int kFours = kWidth / 4 / kLanes;  // output columns lane * 4 + 64 * c and the three after
  float* q_tile = shared_memory();
  float* kv_tile = q_tile + kQueries * kStride;
  float* weights = kv_tile + kKeys * kStride;

  const QueryBlock block = QueryBlock::mine(p.shape, kQueries);
  const int head_dim = static_cast<int>(p.shape.head_dim);
  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes;
  const float* my_q = q_tile + group * kStride;
  const float* my_k = kv_tile + lane * kStride;
  const float* my_v = kv_tile + lane * 4;
  float* my_weights = weights + group * kWeightStride;

  copy_tile<kWidth>(p.q, block.batch, block.head, block.q0, block.q1, head_dim, q_tile);
  SoftmaxRow softmax[kRows];
  float4 out[kRows][kFours] = {};
#pragma unroll
  for (int i = 0; i < kRows; ++i) softmax[i] = SoftmaxRow::empty();

  for (int64_t k0 = 0; k0 < p.shape.kv_len; k0 += kKeys) {
    const int64_t k1 = min(k0 + kKeys, p.shape.kv_len);
    if (p.band.hides_tile(block.q0, block.q1, k0, k1)) continue;  // the same for the whole block: no thread waits alone
    __syncthreads();                                              // every thread is done with the values before
    copy_tile<kWidth>(p.k, block.batch, block.kv_head, k0, k1, head_dim, kv_tile);
    __syncthreads();

    float score[kRows][kScores] = {};
#pragma unroll 2
    for (int d = 0; d < kWidth; d += 4) {
      float4 k[kScores];
#pragma unroll
      for (int j = 0; j < kScores; ++j) k[j] = shared_four(my_k + j * kLanes * kStride + d);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const float4 q = shared_four(my_q + i * kGroups * kStride + d);
#pragma unroll
        for (int j = 0; j < kScores; ++j) add_product(score[i][j], q, k[j]);
      }
    }

    const bool whole = k1 - k0 == kKeys && p.band.shows_tile(block.q0, block.q1, k0, k1);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t query = block.q0 + group + i * kGroups;
      float most = minus_infinity();
#pragma unroll
      for (int j = 0; j < kScores; ++j) {
        const int64_t key = k0 + lane + j * kLanes;
        const bool seen = whole || (key < k1 && p.band.sees(query, key));
        score[i][j] = seen ? score[i][j] * p.scale_log2 : minus_infinity();
        most = fmaxf(most, score[i][j]);
      }
      const float rescale = softmax[i].raise(row_max(most));
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < kScores; ++j) {
        const float weight = exp2f(score[i][j] - softmax[i].shift());
        my_weights[i * kGroups * kWeightStride + lane + j * kLanes] = weight;
        sum += weight;
      }
      softmax[i].sum = softmax[i].sum * rescale + row_sum(sum);
#pragma unroll
      for (int c = 0; c < kFours; ++c) {
        out[i][c].x *= rescale, out[i][c].y *= rescale, out[i][c].z *= rescale, out[i][c].w *= rescale;
      }
    }

    __syncthreads();  // every thread is done with the keys, and the weights are written
    copy_tile<kWidth>(p.v, block.batch, block.kv_head, k0, k1, head_dim, kv_tile);
    __syncthreads();

#pragma unroll 1
    for (int j = 0; j < kKeys; j += 4) {
      float4 v[4][kFours];
#pragma unroll
      for (int jj = 0; jj < 4; ++jj) {
#pragma unroll
        for (int c = 0; c < kFours; ++c) v[jj][c] = shared_four(my_v + (j + jj) * kStride + c * kLanes * 4);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const float4 weight = shared_four(my_weights + i * kGroups * kWeightStride + j);
#pragma unroll
        for (int c = 0; c < kFours; ++c) {
          add_scaled(out[i][c], weight.x, v[0][c]);
          add_scaled(out[i][c], weight.y, v[1][c]);
          add_scaled(out[i][c], weight.z, v[2][c]);
          add_scaled(out[i][c], weight.w, v[3][c]);
        }
      }
    }
  }

#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int64_t query = block.q0 + group + i * kGroups;
    if (query >= block.q1) continue;
    T* to = p.out.row(block.batch, block.head, query);
    const float factor = softmax[i].inverse_sum();
#pragma unroll
    for (int c = 0; c < kFours; ++c) {
      const int d = lane * 4 + c * kLanes * 4;
      if (d < head_dim) to[d] = from_float<T>(out[i][c].x * factor);
      if (d + 1 < head_dim) to[d + 1] = from_float<T>(out[i][c].y * factor);
      if (d + 2 < head_dim) to[d + 2] = from_float<T>(out[i][c].z * factor);
      if (d + 3 < head_dim) to[d + 3] = from_float<T>(out[i][c].w * factor);
    }
    if (lane == 0) p.lse[(block.batch * p.shape.heads + block.head) * p.shape.q_len + query] = softmax[i].log_sum_exp();
  }
}

template <int kWidth, typename T>
void start(const Tensor& q, const ForwardParams<T>& p) {
  launch(q, QueryBlock::count(p.shape, kQueries), dim3(kThreads), shared_bytes<kWidth>(),
         regs_forward_kernel<T, kWidth>, p);
}

std::tuple<Tensor, Tensor> regs_forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int64_t low,
                                        int64_t high) {
  return forward(q, k, v, scale, low, high,
                 [&](const auto& p) { p.shape.head_dim <= 64 ? start<64>(q, p) : start<128>(q, p); });
}

}  // namespace
}  // namespace attn

ATTN_FORWARD_OP(regs_forward)
