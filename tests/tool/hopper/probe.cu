// Asks a Hopper GPU whether it does what csrc/hopper says it does, one layer at a time, each against plain host loops.
//
//   probe list      the names of the checks
//   probe NAME      run one check; a line that begins with "ok" or "BAD", and exit status 0 or 1
//
// One process a check, because a kernel that traps takes its context along. Matrices hold the number of their row or
// of their column, so that a wrong element says where it was read.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda/ptx.h"
#include "hopper/barrier.h"
#include "hopper/bulk_copy.h"
#include "hopper/choice.h"
#include "hopper/held_rows.h"
#include "hopper/pipeline.h"
#include "hopper/tensor_map.h"
#include "hopper/tma.h"
#include "hopper/wgmma.h"

using namespace attn;
using bf16 = __nv_bfloat16;

namespace {

bool failed = false;
std::string detail;

void bad(const std::string& what) {
  failed = true;
  if (detail.size() < 600) detail += (detail.empty() ? "" : "; ") + what;
}
void must(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::printf("BAD %s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

template <typename T>
struct OnDevice {  // managed memory: both sides see it
  T* at = nullptr;
  size_t count;
  explicit OnDevice(size_t n) : count(n) {
    must(cudaMallocManaged(&at, n * sizeof(T)), "cudaMallocManaged");
    std::memset(static_cast<void*>(at), 0, n * sizeof(T));
  }
  T& operator[](size_t i) { return at[i]; }
};

template <typename Kernel, typename... Args>
void run_blocks(Kernel kernel, int blocks, int threads, int shared_bytes, const Args&... args) {
  must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), "shared memory");
  kernel<<<blocks, threads, shared_bytes>>>(args...);
  must(cudaGetLastError(), "launch");
  must(cudaDeviceSynchronize(), "kernel");
}

template <typename Kernel, typename... Args>
void run(Kernel kernel, int threads, int shared_bytes, const Args&... args) {
  run_blocks(kernel, 1, threads, shared_bytes, args...);
}

std::string place(int a, int b) {
  return "(" + std::to_string(a) + "," + std::to_string(b) + ")";
}

// ---- TMA ------------------------------------------------------------------------------------------------------------

struct Tensor4 {  // [batch, heads, rows, head_dim] that lies as [batch, rows, heads, head_dim]
  int batch, heads, rows, head_dim;
  size_t count() const { return size_t(batch) * heads * rows * head_dim; }
  size_t index(int b, int h, int r, int d) const { return ((size_t(b) * rows + r) * heads + h) * head_dim + d; }
  MappedTensor mapped(const void* data) const {
    return {data,     CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, batch, heads, rows, head_dim, int64_t(rows) * heads * head_dim,
            head_dim, int64_t(heads) * head_dim};
  }
};

struct Maps {
  CUtensorMap map;
};

template <typename Tile>
__global__ void load_kernel(const __grid_constant__ Maps maps, int row, int head, int batch, uint16_t* dump) {
  const uint32_t tile = shared_memory_start(), barrier = tile + Tile::kBytes;
  if (threadIdx.x == 0) {
    if (tile % 1024 != 0) __trap();
    make_barrier(barrier, 1);
    publish_barriers();
  }
  for (int i = threadIdx.x; i < Tile::kBytes / 4; i += blockDim.x) store_shared(tile + 4 * i, 0xdeaddeadu);
  publish_stores();
  __syncthreads();
  if (threadIdx.x == 0) {
    arrive_and_expect(barrier, Tile::kBytes);
    start_tile_load<Tile>(tile, maps.map, row, head, batch, barrier);
  }
  wait_for_phase(barrier, 0);
  extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];
  for (int i = threadIdx.x; i < Tile::kBytes / 2; i += blockDim.x) {
    dump[i] = reinterpret_cast<const uint16_t*>(dynamic_shared_memory)[i];
  }
}

template <int rows, int columns>
void check_load(Tensor4 shape, int row, int head, int batch) {
  using Tile = Slabs<rows, columns>;
  OnDevice<bf16> data(shape.count());
  for (size_t i = 0; i < data.count; ++i) {
    const uint16_t bits = static_cast<uint16_t>(i * 7 + 1);
    std::memcpy(static_cast<void*>(&data[i]), &bits, 2);
  }
  OnDevice<uint16_t> dump(Tile::kBytes / 2);
  Maps maps;
  if (const char* error = make_tensor_map(&maps.map, shape.mapped(data.at), rows)) return bad(error);
  run(load_kernel<Tile>, 128, Tile::kBytes + 16, maps, row, head, batch, dump.at);
  int wrong = 0;
  for (int r = 0; r < rows; ++r) {
    for (int d = 0; d < columns; ++d) {
      const bool inside = row + r < shape.rows && d < shape.head_dim;
      const uint16_t want = inside ? static_cast<uint16_t>(shape.index(batch, head, row + r, d) * 7 + 1) : 0;
      const uint16_t got = dump[(Tile::offset(r, d / 8) + d % 8 * 2) / 2];
      if (want != got && ++wrong <= 2) {
        bad("tile " + place(r, d) + " want " + std::to_string(want) + " got " + std::to_string(got));
      }
    }
  }
  if (wrong) bad(std::to_string(wrong) + " wrong");
}

__global__ void store_kernel(const __grid_constant__ Maps maps, int row, int head, int batch, int slabs,
                             int slab_bytes) {
  const uint32_t tile = shared_memory_start();
  const int warp_row = threadIdx.x / 32 * 16;  // every warp stores its 16 rows, numbers row * 256 + column
  for (int i = threadIdx.x % 32; i < 16 * slabs * 32; i += 32) {
    const int r = warp_row + i / (slabs * 32), word = i % (slabs * 32), chunk = word / 4;
    const uint32_t low = r * 256 + word * 2;
    store_shared(tile + chunk / 8 * slab_bytes + r * 128 + ((chunk ^ r) % 8) * 16 + word % 4 * 4, low | (low + 1)
                                                                                                            << 16);
  }
  publish_stores();
  __syncwarp();
  if (threadIdx.x % 32 == 0) {
    for (int slab = 0; slab < slabs; ++slab) {
      start_store(maps.map, {slab * 64, row + warp_row, head, batch}, tile + slab * slab_bytes + warp_row * 128);
    }
    wait_for_stores_to_read();
  }
}

void check_store(Tensor4 shape, int row, int head, int batch) {
  using Tile = Slabs<64, 128>;
  OnDevice<uint16_t> data(shape.count());
  for (size_t i = 0; i < data.count; ++i) data[i] = 0xabcd;
  Maps maps;
  if (const char* error = make_tensor_map(&maps.map, shape.mapped(data.at), 16)) return bad(error);
  run(store_kernel, 128, Tile::kBytes, maps, row, head, batch, Tile::kCount, Tile::kSlabBytes);
  int wrong = 0;
  for (int b = 0; b < shape.batch; ++b)
    for (int h = 0; h < shape.heads; ++h)
      for (int r = 0; r < shape.rows; ++r)
        for (int d = 0; d < shape.head_dim; ++d) {
          const bool written = b == batch && h == head && r >= row && r < row + 64;
          const uint16_t want = written ? static_cast<uint16_t>((r - row) * 256 + d) : 0xabcd;
          const uint16_t got = data[shape.index(b, h, r, d)];
          if (want != got && ++wrong <= 2) {
            bad("row, column " + place(r, d) + " want " + std::to_string(want) + " got " + std::to_string(got));
          }
        }
  if (wrong) bad(std::to_string(wrong) + " wrong");
}

// ---- runs of bytes --------------------------------------------------------------------------------------------------

__global__ void run_load_kernel(const float* from, int bytes, float* dump, int count) {
  const uint32_t start = shared_memory_start(), barrier = start + count * 4;
  if (threadIdx.x == 0) {
    make_barrier(barrier, 1);
    publish_barriers();
  }
  for (int i = threadIdx.x; i < count; i += blockDim.x) store_shared(start + i * 4, __float_as_uint(-1.0f));
  publish_stores();
  __syncthreads();
  if (threadIdx.x == 0) {
    arrive_and_expect(barrier, 2 * bytes);  // two copies, one behind the other
    start_run_load(start, from, bytes, barrier);
    start_run_load(start + bytes, from + 4, bytes, barrier);
  }
  wait_for_phase(barrier, 0);
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    dump[i] = load_shared_two_floats(start + i / 2 * 8).x;
    if (i % 2) dump[i] = load_shared_two_floats(start + i / 2 * 8).y;
  }
}

void check_run_load(int numbers) {
  OnDevice<float> from(numbers + 4), dump(2 * numbers + 4);
  for (int i = 0; i < numbers + 4; ++i) from[i] = float(i);
  run(run_load_kernel, 64, 8192, from.at, numbers * 4, dump.at, int(dump.count));
  for (int i = 0; i < int(dump.count); ++i) {
    const float want = i >= 2 * numbers ? -1.0f : i < numbers ? float(i) : float(i - numbers + 4);
    if (dump[i] != want) bad("number " + std::to_string(i) + " is " + std::to_string(dump[i]));
  }
}

// So that additions find the memory where the device has it.
__global__ void clear_kernel(float* to, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) to[i] = 0;
}

// Every warp adds 4096 bytes of its own `times` times, its place in shared memory used again each time.
__global__ void run_addition_kernel(float* to, int times) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t mine = shared_memory_start() + warp * 4096;
  for (int turn = 0; turn < times; ++turn) {
    if (lane == 0) wait_for_additions_to_read();
    __syncwarp();
    for (int n = 0; n < 8; ++n) {
      const auto number = [&](int i) { return __float_as_uint(float((n * 32 + lane) * 4 + i + turn)); };
      store_shared(mine + (n * 32 + lane) * 16, uint4{number(0), number(1), number(2), number(3)});
    }
    publish_stores();
    __syncwarp();
    if (lane == 0) start_run_addition(to + (blockIdx.x % 2 * 8 + warp) * 1024, mine, 4096);
  }
  if (lane == 0) wait_for_additions();
}

void check_run_addition() {
  constexpr int kTimes = 5, kBlocks = 6;
  OnDevice<float> sums(16 * 1024 + 64);
  run(clear_kernel, 256, 0, sums.at, int(sums.count));
  run_blocks(run_addition_kernel, kBlocks, 256, 8 * 4096, sums.at, kTimes);
  int wrong = 0;
  for (int i = 0; i < int(sums.count); ++i) {
    const int added = kBlocks / 2 * kTimes * (i % 1024) + kBlocks / 2 * (kTimes * (kTimes - 1) / 2);
    const float want = i < 16 * 1024 ? float(added) : 0.0f;
    if (sums[i] != want && ++wrong <= 3) {
      bad("sum " + std::to_string(i) + " is " + std::to_string(sums[i]) + ", not " + std::to_string(want));
    }
  }
  if (wrong) bad(std::to_string(wrong) + " wrong");
}

// Blocks add numbers whose fp32 sum depends on their order, each after those of lower number.
__global__ void run_in_order_kernel(float* to, int* count) {
  const uint32_t start = shared_memory_start();
  const float x = blockIdx.x % 3 == 0 ? 1e8f : blockIdx.x % 3 == 1 ? 3.7f * float(blockIdx.x) : -1e8f;
  store_shared(start + threadIdx.x * 4, __float_as_uint(x));
  publish_stores();
  __syncwarp();
  if (threadIdx.x != 0) return;
  wait_until_told(count, blockIdx.x);
  start_run_addition(to, start, 128);
  wait_for_additions();
  tell(count);
}

void check_run_in_order() {
  constexpr int kBlocks = 500;
  float want = 0;
  for (int block = 0; block < kBlocks; ++block) {
    want += block % 3 == 0 ? 1e8f : block % 3 == 1 ? 3.7f * float(block) : -1e8f;
  }
  for (int turn = 0; turn < 20; ++turn) {
    OnDevice<float> sums(32);
    OnDevice<int> count(1);
    run(clear_kernel, 32, 0, sums.at, 32);
    run_blocks(run_in_order_kernel, kBlocks, 32, 128, sums.at, count.at);
    for (int i = 0; i < 32; ++i) {
      if (sums[i] != want) return bad("sum is " + std::to_string(sums[i]) + ", in order " + std::to_string(want));
    }
  }
}

// ---- fragments to and from shared memory ----------------------------------------------------------------------------

// Each of four warps stores its 16 rows of numbers row * 256 + column, and reads those of the tile as an A again.
template <typename Tile>
__global__ void matrices_kernel(uint16_t* dump, uint32_t* read) {
  constexpr int steps = Tile::kColumns / kPiece;
  const uint32_t tile = shared_memory_start();
  const int row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
  Held<1, steps> held;
#pragma unroll
  for (int k = 0; k < steps; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t first = (row + lane / 4 + i % 2 * 8) * 256 + k * 16 + lane % 4 * 2 + i / 2 * 8;
      held.at[0][k][i] = first | (first + 1) << 16;
    }
  }
  store_rows<Tile>(held, tile, row);
  __syncwarp();
  const auto again = load_rows<Tile, steps>(tile, row);
#pragma unroll
  for (int k = 0; k < steps; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) read[(threadIdx.x * steps + k) * 4 + i] = again.at[0][k][i] ^ held.at[0][k][i];
  }
  __syncthreads();
  extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];
  for (int i = threadIdx.x; i < Tile::kBytes / 2; i += blockDim.x) {
    dump[i] = reinterpret_cast<const uint16_t*>(dynamic_shared_memory)[i];
  }
}

template <int columns>
void check_matrices() {
  using Tile = Slabs<64, columns>;
  OnDevice<uint16_t> dump(Tile::kBytes / 2);
  OnDevice<uint32_t> differ(128 * columns / 16 * 4);
  run(matrices_kernel<Tile>, 128, Tile::kBytes, dump.at, differ.at);
  int wrong = 0;
  for (int r = 0; r < 64; ++r)
    for (int d = 0; d < columns; ++d) {
      const int got = dump[(Tile::offset(r, d / 8) + d % 8 * 2) / 2];
      if (got != r * 256 + d && ++wrong <= 3) bad("tile " + place(r, d) + " is that of " + place(got / 256, got % 256));
    }
  for (size_t i = 0; i < differ.count; ++i) {
    if (differ[i] != 0 && ++wrong <= 3) bad("register " + std::to_string(i) + " is not read as it was written");
  }
  if (wrong) bad(std::to_string(wrong) + " wrong");
}

// ---- barriers and registers -----------------------------------------------------------------------------------------

// A producer warpgroup fills a ring by TMA, two consumer warpgroups sum up the tiles, registers are traded.
template <int tiles>
__global__ void __launch_bounds__(384, 1) ring_kernel(const __grid_constant__ Maps maps, float* sums) {
  using Tile = Slabs<64, 64>;
  constexpr int kStages = 2;
  const uint32_t start = shared_memory_start();
  const Ring<kStages> ring{start + kStages * Tile::kBytes};
  if (threadIdx.x == 0) {
    ring.make(8);
    publish_barriers();
  }
  __syncthreads();
  const int group = warpgroup();
  if (group == 0) {
    shrink_registers<24>();
    if (threadIdx.x == 0) {
      Turn<kStages> turn;
      for (int i = 0; i < tiles; ++i, turn.advance()) {
        ring.wait_until_empty(turn);
        start_tile_load<Tile>(start + turn.stage * Tile::kBytes, maps.map, i * 64, 0, 0,
                              ring.expect(turn, Tile::kBytes));
      }
    }
  } else {
    grow_registers<240>();
    Turn<kStages> turn;
    for (int i = 0; i < tiles; ++i, turn.advance()) {
      ring.wait_until_full(turn);
      float sum = 0;
      const int thread = threadIdx.x % 128;
      for (int j = 0; j < Tile::kBytes / 4 / 128; ++j) {
        uint32_t word;
        asm volatile("ld.shared.b32 %0, [%1];"
                     : "=r"(word)
                     : "r"(start + turn.stage * Tile::kBytes + (j * 128 + thread) * 4));
        const float2 two = unpack<bf16>(word);
        sum += two.x + two.y;
      }
      __syncwarp();
      ring.release(turn);
      with_one_of<2>(group - 1, [](auto i) { named_barrier<1 + decltype(i)::value>(kWarpgroup); });
      atomicAdd(sums + (group - 1) * tiles + i, sum);
      if (group == 2) __nanosleep(2000);  // drift apart
    }
  }
}

void check_ring() {
  constexpr int kTiles = 11;
  const Tensor4 shape{1, 1, kTiles * 64, 64};
  OnDevice<bf16> data(shape.count());
  for (size_t i = 0; i < data.count; ++i) data[i] = __float2bfloat16_rn(float(i / 4096 + i % 3));
  OnDevice<float> sums(2 * kTiles);
  Maps maps;
  if (const char* error = make_tensor_map(&maps.map, shape.mapped(data.at), 64)) return bad(error);
  run(ring_kernel<kTiles>, 384, 2 * Slabs<64, 64>::kBytes + Ring<2>::kBytes, maps, sums.at);
  for (int i = 0; i < 2 * kTiles; ++i) {
    float want = 0;
    for (int j = 0; j < 4096; ++j) want += float(i % kTiles + (i % kTiles * 4096 + j) % 3);
    if (sums[i] != want)
      bad("sum " + std::to_string(i) + " want " + std::to_string(want) + " got " + std::to_string(sums[i]));
  }
}

// ---- wgmma ----------------------------------------------------------------------------------------------------------

// Where the descriptor of B and its steps may differ from what csrc/hopper/wgmma.h says: candidates to choose from.
struct Guess {
  const char* name;
  uint32_t leading, stride, step;  // bytes; step is of 16 of depth
};

template <int n, int steps>
struct SharedProduct {  // A and B both [rows][depth]
  using A = Slabs<128, steps * 16>;
  using B = Slabs<n, steps * 16>;
};

template <typename T, int n>
__device__ void store_accumulator(const Accumulator<1, n / 8>& c, float* to) {
  const int row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
  for (int j = 0; j < n / 8; ++j)
    for (int i = 0; i < 4; ++i)
      to[(row + accumulator_row(lane, i)) * n + j * 8 + accumulator_column(lane, i)] = c.at[0][j][i];
}

// C = A[first_row ... + 64] B^T, twice added, so that accumulating is checked too.
template <typename T, int n, int steps>
__global__ void __launch_bounds__(128, 1) shared_kernel(const T* a, const T* b, float* c, int first_row) {
  using A = typename SharedProduct<n, steps>::A;
  using B = typename SharedProduct<n, steps>::B;
  const uint32_t at = shared_memory_start(), bt = at + A::kBytes;
  const auto fill = [&](uint32_t tile, const T* from, int rows, auto layout) {
    for (int i = threadIdx.x; i < rows * steps * 2; i += 128) {
      const int row = i / (steps * 2), chunk = i % (steps * 2);
      store_shared(tile + decltype(layout)::offset(row, chunk), reinterpret_cast<const uint4*>(from)[i]);
    }
  };
  fill(at, a, 128, A{});
  fill(bt, b, n, B{});
  publish_stores();
  __syncthreads();
  Accumulator<1, n / 8> acc;
  begin_products();
  start_product<T, steps>(acc, AlongRows<A>::of(at, first_row), AlongRows<B>::of(bt), false);
  start_product<T, steps>(acc, AlongRows<A>::of(at, first_row), AlongRows<B>::of(bt), true);
  commit_products();
  wait_for_products<0>();
  pin(acc);
  store_accumulator<T, n>(acc, c);
}

template <typename T>
T number(float x) {
  if constexpr (std::is_same_v<T, bf16>)
    return __float2bfloat16_rn(x);
  else
    return __float2half_rn(x);
}

// Compare C [64, n] with twice the code of the element that should have been read. Returns the number of wrong ones.
template <typename Want>
int compare(OnDevice<float>& c, int n, const std::string& what, const Want& want) {
  int wrong = 0;
  for (int m = 0; m < 64; ++m)
    for (int j = 0; j < n; ++j)
      if (c[m * n + j] != want(m, j) && ++wrong <= 2) {
        bad(what + " C" + place(m, j) + " want " + std::to_string(want(m, j)) + " got " + std::to_string(c[m * n + j]));
      }
  return wrong;
}

// A picks one k for each row m, so that C(m, j) is an element of B: of its row numbers, then of its column numbers.
template <typename T, int n, int steps>
void check_shared() {
  constexpr int depth = steps * 16;
  OnDevice<T> a(128 * depth), b(n * depth);
  OnDevice<float> c(64 * n);
  using P = SharedProduct<n, steps>;
  const std::string name = "n" + std::to_string(n) + " depth " + std::to_string(depth);
  for (int first_row : {0, 64}) {
    for (int m = 0; m < 128; ++m)
      for (int k = 0; k < depth; ++k) a[m * depth + k] = number<T>((m * 5 + m / 16) % depth == k);
    for (bool rows : {true, false}) {
      for (int j = 0; j < n; ++j)
        for (int k = 0; k < depth; ++k) b[j * depth + k] = number<T>(rows ? j : k);
      run(shared_kernel<T, n, steps>, 128, P::A::kBytes + P::B::kBytes, a.at, b.at, c.at, first_row);
      compare(c, n, name + (rows ? " row of B" : " column of B"), [&](int m, int j) {
        const int row = m + first_row;
        return 2.0f * (rows ? j : (row * 5 + row / 16) % depth);
      });
    }
  }
}

// A in registers, B [depth][n] in slabs of 64 columns.
template <typename T, int n, int steps>
__global__ void __launch_bounds__(128, 1) registers_kernel(const T* a, const T* b, float* c, Guess guess) {
  using B = Slabs<steps * 16, n>;
  const uint32_t bt = shared_memory_start();
  for (int i = threadIdx.x; i < steps * 16 * n / 8; i += 128) {
    store_shared(bt + B::offset(i / (n / 8), i % (n / 8)), reinterpret_cast<const uint4*>(b)[i]);
  }
  publish_stores();
  __syncthreads();
  Held<1, steps> held;
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int k = 0; k < steps; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const T* from = a + (row + i % 2 * 8) * (steps * 16) + k * 16 + column + i / 2 * 8;
      held.at[0][k][i] = *reinterpret_cast<const uint32_t*>(from);
    }
  }
  Accumulator<1, n / 8> acc;
  acc.clear();
  if (guess.step == 0) {  // what csrc/hopper says
    pin(acc);
    begin_products();
    start_product<T, steps>(acc, held, AcrossRows<B>::of(bt));
    start_product<T, steps>(acc, held, AcrossRows<B>::of(bt));
    commit_products();
    wait_for_products<0>();
    pin(acc);
  } else {
    const uint64_t descriptor = matrix_descriptor(bt, guess.leading, guess.stride);
    pin(acc);
    begin_products();
#pragma unroll
    for (int twice = 0; twice < 2; ++twice) {
#pragma unroll
      for (int k = 0; k < steps; ++k) {
        Wgmma<T, n>::template registers<1>(acc, held.at[0][k], descriptor + k * guess.step / 16, true);
      }
    }
    commit_products();
    wait_for_products<0>();
    pin(acc);
  }
  store_accumulator<T, n>(acc, c);
}

template <typename T, int n, int steps>
void check_registers() {
  constexpr int depth = steps * 16;
  using B = Slabs<depth, n>;
  const Guess guesses[] = {
      {"as csrc/hopper says", 0, 0, 0},
      {"leading = slab, stride = 1024, step 2048", B::kSlabBytes, 1024, 2048},
      {"leading = 1024, stride = slab, step 2048", 1024, B::kSlabBytes, 2048},
      {"leading = slab, stride = 1024, step 32", B::kSlabBytes, 1024, 32},
      {"leading = 1024, stride = slab, step 32", 1024, B::kSlabBytes, 32},
      {"leading = 16, stride = 1024, step 2048", 16, 1024, 2048},
      {"leading = 128, stride = 1024, step 2048", 128, 1024, 2048},
      {"leading = 2048, stride = 1024, step 2048", 2048, 1024, 2048},
  };
  OnDevice<T> a(64 * depth), b(n * depth);
  OnDevice<float> c(64 * n);
  const std::string name = "n" + std::to_string(n) + " depth " + std::to_string(depth);
  for (int m = 0; m < 64; ++m)
    for (int k = 0; k < depth; ++k) a[m * depth + k] = number<T>((m * 5 + m / 16) % depth == k);
  std::string right;
  for (const Guess& guess : guesses) {
    const bool failed_before = failed;
    const std::string detail_before = detail;
    int wrong = 0;
    for (bool rows : {true, false}) {
      for (int k = 0; k < depth; ++k)
        for (int j = 0; j < n; ++j) b[k * n + j] = number<T>(rows ? k : j);
      run(registers_kernel<T, n, steps>, 128, 224 * 1024, a.at, b.at, c.at, guess);  // wrong ones read far
      wrong += compare(c, n, name + (rows ? " row of B" : " column of B"),
                       [&](int m, int j) { return 2.0f * (rows ? (m * 5 + m / 16) % depth : j); });
    }
    if (wrong == 0) right += std::string(right.empty() ? "" : " | ") + guess.name;
    if (guess.step != 0) failed = failed_before, detail = detail_before;  // only the first has to be right
  }
  if (failed) detail += "; " + name + ", right are: " + (right.empty() ? "none" : right);
}

// C = A^T B from A [depth][128] and B [depth][128]: slab `a_slab` of A's columns, 64 columns of B from `b_slab` on, and
// of both the `steps` * 16 rows from `first` on.
template <typename T, int steps>
__global__ void __launch_bounds__(128, 1)
    transposed_kernel(const T* a, const T* b, float* c, int a_slab, int b_slab, int first, Guess guess) {
  using Tile = Slabs<2 * steps * 16, 128>;
  const uint32_t at = shared_memory_start(), bt = at + Tile::kBytes;
  for (int i = threadIdx.x; i < Tile::kRows * 16; i += 128) {
    store_shared(at + Tile::offset(i / 16, i % 16), reinterpret_cast<const uint4*>(a)[i]);
    store_shared(bt + Tile::offset(i / 16, i % 16), reinterpret_cast<const uint4*>(b)[i]);
  }
  publish_stores();
  __syncthreads();
  const uint32_t left = at + a_slab * Tile::kSlabBytes + first * kSlabRowBytes;
  const auto right = AcrossRows<Tile>::of(bt + b_slab * Tile::kSlabBytes + first * kSlabRowBytes);
  Accumulator<1, 8> acc;
  acc.clear();
  pin(acc);
  if (guess.step == 0) {  // what csrc/hopper says
    begin_products();
    start_product<T, steps>(acc, AcrossRows<Tile>::of(left), right, false);
    start_product<T, steps>(acc, AcrossRows<Tile>::of(left), right, true);
    commit_products();
    wait_for_products<0>();
  } else {
    const uint64_t descriptor = matrix_descriptor(left, guess.leading, guess.stride);
    begin_products();
#pragma unroll
    for (int i = 0; i < 2 * steps; ++i) {
      Wgmma<T, 64>::template shared<1, 1>(acc, descriptor + i % steps * guess.step / 16, right.step(i % steps), i > 0);
    }
    commit_products();
    wait_for_products<0>();
  }
  pin(acc);
  store_accumulator<T, 64>(acc, c);
}

template <typename T, int steps>
void check_transposed() {
  constexpr int depth = steps * 16;
  const Guess guesses[] = {
      {"as csrc/hopper says", 0, 0, 0},
      {"leading = 16, stride = 1024, step 2048", 16, 1024, 2048},
      {"leading = 1024, stride = slab, step 2048", 1024, 2 * depth * 128, 2048},
      {"leading = 1024, stride = 1024, step 2048", 1024, 1024, 2048},
      {"leading = 2048, stride = 1024, step 2048", 2048, 1024, 2048},
      {"leading = slab, stride = 1024, step 32", 2 * depth * 128, 1024, 32},
  };
  OnDevice<T> a(2 * depth * 128), b(2 * depth * 128);
  OnDevice<float> c(64 * 64);
  const auto picked = [](int m) { return (m * 5 + m / 16) % depth; };
  std::string right;
  for (const Guess& guess : guesses) {
    const bool failed_before = failed;
    const std::string detail_before = detail;
    int wrong = 0;
    for (int which = 0; which < 8; ++which) {
      const int a_slab = which % 2, b_slab = which / 2 % 2, first = which / 4 * depth;
      for (bool rows : {true, false}) {
        for (int k = 0; k < 2 * depth; ++k)
          for (int m = 0; m < 128; ++m) {
            a[k * 128 + m] = number<T>(k % depth == picked(m));
            b[k * 128 + m] = number<T>(rows ? k : m);
          }
        run(transposed_kernel<T, steps>, 128, 224 * 1024, a.at, b.at, c.at, a_slab, b_slab, first, guess);
        wrong +=
            compare(c, 64, "slabs " + place(a_slab, b_slab) + " from row " + std::to_string(first),
                    [&](int m, int j) { return 2.0f * (rows ? first + picked(m + a_slab * 64) : j + b_slab * 64); });
      }
    }
    if (wrong == 0) right += std::string(right.empty() ? "" : " | ") + guess.name;
    if (guess.step != 0) failed = failed_before, detail = detail_before;  // only the first has to be right
  }
  if (failed) detail += "; right are: " + (right.empty() ? "none" : right);
}

// C = A B^T and, through `across`, A B', where B is the lower half of a tile [128][128] of which wgmma is told the
// middle.
template <bool across>
__global__ void __launch_bounds__(128, 1) lower_half_kernel(const bf16* a, const bf16* b, float* c) {
  using A = Slabs<64, 64>;
  using B = Slabs<128, across ? 128 : 64>;
  constexpr int n = across ? 128 : 64, chunks = B::kColumns / 8;
  const uint32_t at = shared_memory_start(), bt = at + A::kBytes;
  for (int i = threadIdx.x; i < 64 * 8; i += 128) {
    store_shared(at + A::offset(i / 8, i % 8), reinterpret_cast<const uint4*>(a)[i]);
  }
  for (int i = threadIdx.x; i < 128 * chunks; i += 128) {
    store_shared(bt + B::offset(i / chunks, i % chunks), reinterpret_cast<const uint4*>(b)[i]);
  }
  publish_stores();
  __syncthreads();
  const auto held = load_rows<A, 4>(at, threadIdx.x / 32 * 16);
  Accumulator<1, n / 8> acc;
  begin_products();
  if constexpr (across) {
    start_product<bf16, 4>(acc, held, AcrossRows<B>::of(bt + 64 * kSlabRowBytes), false);
    start_product<bf16, 4>(acc, held, AcrossRows<B>::of(bt + 64 * kSlabRowBytes));
  } else {
    start_product<bf16, 4>(acc, held, AlongRows<B>::of(bt, 64), false);
    start_product<bf16, 4>(acc, AlongRows<A>::of(at), AlongRows<B>::of(bt, 64), true);
  }
  commit_products();
  wait_for_products<0>();
  pin(acc);
  store_accumulator<bf16, n>(acc, c);
}

template <bool across>
void check_lower_half() {
  constexpr int n = across ? 128 : 64;
  OnDevice<bf16> a(64 * 64), b(128 * n);
  OnDevice<float> c(64 * n);
  for (int i = 0; i < 64 * 64; ++i) a[i] = number<bf16>((i / 64 * 5 + i / 1024) % 64 == i % 64);
  for (bool rows : {true, false}) {
    for (int i = 0; i < 128 * n; ++i) b[i] = number<bf16>(rows ? i / n : i % n);
    run(lower_half_kernel<across>, 128, 64 * 1024, a.at, b.at, c.at);
    compare(c, n, rows ? "row of B" : "column of B", [&](int m, int j) {
      const int k = (m * 5 + m / 16) % 64;
      return 2.0f * (across ? (rows ? 64 + k : j) : (rows ? 64 + j : k));
    });
  }
}

// The way of dS: two warpgroups store half of the rows each, and both multiply the transpose of all of them, round
// after round, in two places by turns. A value of another round, or one not stored yet, shows in the sum.
__host__ __device__ inline int exchanged(int row, int column, int round) {
  return (row * 3 + column * 5 + round * 7 + row * column) % 8 - 3;
}
__global__ void __launch_bounds__(2 * kWarpgroup, 1) exchange_kernel(const bf16* b, float* c, int rounds) {
  using D = Slabs<128, 64>;
  using B = Slabs<128, 128>;
  const uint32_t bt = shared_memory_start(), dt = bt + B::kBytes;
  for (int i = threadIdx.x; i < 128 * 16; i += 2 * kWarpgroup) {
    store_shared(bt + B::offset(i / 16, i % 16), reinterpret_cast<const uint4*>(b)[i]);
  }
  publish_stores();
  __syncthreads();
  const int group = warpgroup(), row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
  Accumulator<1, 8> acc;
  acc.clear();
  for (int round = 0; round < rounds; ++round) {
    Held<1, 4> held;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = row + lane / 4 + i % 2 * 8, column = k * 16 + lane % 4 * 2 + i / 2 * 8;
        held.at[0][k][i] = pack<bf16>(exchanged(at, column, round), exchanged(at, column + 1, round));
      }
    }
    const uint32_t d = dt + round % 2 * D::kBytes;
    if (group == (round / 3 + blockIdx.x) % 2) __nanosleep(round % 5 * 100);  // drift apart
    store_rows<D>(held, d, row);
    publish_stores();
    named_barrier<1>(2 * kWarpgroup);
    pin(acc);
    begin_products();
    start_product<bf16, 8>(acc, AcrossRows<D>::of(d), AcrossRows<B>::of(bt + group * B::kSlabBytes), true);
    commit_products();
    wait_for_products<0>();
    pin(acc);
  }
  store_accumulator<bf16, 64>(acc, c + blockIdx.x * 128 * 64);
}

void check_exchange() {
  constexpr int kRounds = 100, kBlocks = 132;
  OnDevice<bf16> b(128 * 128);
  OnDevice<float> c(kBlocks * 128 * 64);
  for (int i = 0; i < 128 * 128; ++i) b[i] = number<bf16>(float(exchanged(i / 128, i % 128, 3)));
  run_blocks(exchange_kernel, kBlocks, 2 * kWarpgroup, 64 * 1024, b.at, c.at, kRounds);
  std::vector<float> want(128 * 64);
  for (int m = 0; m < 64; ++m) {
    for (int k = 0; k < 128; ++k) {
      int sum = 0;
      for (int round = 0; round < kRounds; ++round) sum += exchanged(k, m, round);
      for (int j = 0; j < 128; ++j) want[(j / 64 * 64 + m) * 64 + j % 64] += float(sum * exchanged(k, j, 3));
    }
  }
  int wrong = 0;
  for (int i = 0; i < int(c.count); ++i) {
    if (c[i] != want[i % (128 * 64)] && ++wrong <= 2) {
      bad("block " + std::to_string(i / (128 * 64)) + " C" + place(i / 64 % 128, i % 64) + " want " +
          std::to_string(want[i % (128 * 64)]) + " got " + std::to_string(c[i]));
    }
  }
  if (wrong) bad(std::to_string(wrong) + " wrong");
}

// ---- speed ----------------------------------------------------------------------------------------------------------

// Every multiprocessor, `groups` warpgroups: products of both kinds that the kernels use, on whatever lies in memory.
template <int n, int steps, bool from_registers, int groups>
__global__ void __launch_bounds__(groups* kWarpgroup, 1) speed_kernel(float* sink, int turns) {
  using A = Slabs<64 * groups, steps * 16>;
  using B = std::conditional_t<from_registers, Slabs<steps * 16, n>, Slabs<n, steps * 16>>;
  const uint32_t at = shared_memory_start(), bt = at + A::kBytes;
  for (int i = threadIdx.x; i < (A::kBytes + B::kBytes) / 4; i += groups * kWarpgroup) {
    store_shared(at + i * 4, (i * 2654435761u & 0x807f807fu) | 0x3f003f00u);  // bf16 of size 0.5 to 1
  }
  publish_stores();
  __syncthreads();
  Held<1, steps> held;
#pragma unroll
  for (int k = 0; k < steps * 4; ++k)
    held.at[0][k / 4][k % 4] = 0x3f003f80u ^ (threadIdx.x * 2654435761u & 0x80018001u);
  Accumulator<1, n / 8> acc;
  acc.clear();
  for (int turn = 0; turn < turns; ++turn) {
    pin(acc);
    begin_products();
    if constexpr (from_registers)
      start_product<bf16, steps>(acc, held, AcrossRows<B>::of(bt));
    else
      start_product<bf16, steps>(acc, AlongRows<A>::of(at, warpgroup() * 64), AlongRows<B>::of(bt), true);
    commit_products();
    wait_for_products<0>();
    pin(acc);
  }
  float sum = 0;
  for (int j = 0; j < n / 8; ++j) sum += acc.at[0][j][0] + acc.at[0][j][1] + acc.at[0][j][2] + acc.at[0][j][3];
  if (sum == 12345.0f) *sink = sum;
}

template <int n, int steps, bool from_registers, int groups>
void measure_speed() {
  int multiprocessors = 0;
  must(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0), "device");
  OnDevice<float> sink(1);
  const auto kernel = speed_kernel<n, steps, from_registers, groups>;
  const int bytes = (64 * groups + n) * steps * 32, turns = 4000;
  must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "shared memory");
  cudaEvent_t begin, end;
  must(cudaEventCreate(&begin), "event");
  must(cudaEventCreate(&end), "event");
  float best = 1e30f;
  for (int i = 0; i < 5; ++i) {
    must(cudaEventRecord(begin), "event");
    kernel<<<multiprocessors, groups * 128, bytes>>>(sink.at, turns);
    must(cudaEventRecord(end), "event");
    must(cudaEventSynchronize(end), "kernel");
    float ms = 0;
    must(cudaEventElapsedTime(&ms, begin, end), "event");
    best = std::min(best, ms);
  }
  const double flops = 2.0 * 64 * n * steps * 16 * turns * groups * multiprocessors;
  char line[100];
  std::snprintf(line, sizeof line, "m64n%d depth %d %s %d warpgroups %.0f TFLOP/s", n, steps * 16,
                from_registers ? "RS" : "SS", groups, flops / best / 1e9);
  detail += (detail.empty() ? "" : "; ") + std::string(line);
}

const std::map<std::string, std::function<void()>> checks = {
    {"load", [] { check_load<64, 64>({2, 3, 200, 64}, 64, 1, 1); }},
    {"load_two_slabs", [] { check_load<128, 128>({2, 3, 300, 128}, 128, 2, 0); }},
    {"load_ragged", [] { check_load<192, 128>({2, 3, 100, 72}, 64, 1, 0); }},
    {"load_box_larger_than_tensor", [] { check_load<176, 256>({1, 1, 1, 40}, 0, 0, 0); }},
    {"load_far_outside", [] { check_load<80, 64>({1, 2, 100, 64}, 160, 0, 0); }},
    {"store", [] { check_store({2, 3, 200, 128}, 64, 1, 1); }},
    {"store_ragged", [] { check_store({2, 3, 100, 72}, 64, 2, 0); }},
    {"store_narrow", [] { check_store({1, 2, 64, 40}, 0, 1, 0); }},
    {"ring_and_registers", check_ring},
    {"run_load",
     [] {
       check_run_load(64);
       check_run_load(128);
       check_run_load(4);
     }},
    {"run_addition", check_run_addition},
    {"run_in_order", check_run_in_order},
    {"matrices",
     [] {
       check_matrices<64>();
       check_matrices<128>();
     }},
    {"exchange", check_exchange},
    {"wgmma_transposed_a", [] { check_transposed<bf16, 8>(); }},
    {"wgmma_transposed_a_fp16", [] { check_transposed<__half, 4>(); }},
    {"wgmma_lower_half_along", check_lower_half<false>},
    {"wgmma_lower_half_across", check_lower_half<true>},
    {"wgmma_shared_bf16",
     [] {
       check_shared<bf16, 64, 4>();
       check_shared<bf16, 128, 4>();
       check_shared<bf16, 128, 8>();
     }},
    {"wgmma_shared_fp16", [] { check_shared<__half, 96, 8>(); }},
    {"wgmma_shared_other_n",
     [] {
       check_shared<bf16, 80, 16>();
       check_shared<bf16, 176, 8>();
       check_shared<bf16, 192, 4>();
     }},
    {"wgmma_registers_one_slab",
     [] {
       check_registers<bf16, 64, 1>();
       check_registers<bf16, 64, 8>();
     }},
    {"wgmma_registers_two_slabs", [] { check_registers<bf16, 128, 8>(); }},
    {"wgmma_registers_four_slabs", [] { check_registers<bf16, 256, 5>(); }},
    {"wgmma_registers_fp16", [] { check_registers<__half, 128, 4>(); }},
    {"speed",
     [] {
       measure_speed<128, 8, false, 2>();
       measure_speed<128, 8, false, 3>();
       measure_speed<128, 8, true, 2>();
       measure_speed<128, 8, true, 3>();
       measure_speed<128, 4, false, 3>();
       measure_speed<64, 8, true, 3>();
       measure_speed<64, 8, false, 2>();
       measure_speed<64, 4, false, 2>();
       measure_speed<64, 4, true, 2>();
       measure_speed<176, 8, false, 2>();
       measure_speed<192, 4, false, 2>();
     }},
};

}  // namespace

int main(int count, char** arguments) {
  const std::string name = count > 1 ? arguments[1] : "list";
  if (name == "list") {
    for (const auto& [each, check] : checks) std::puts(each.c_str());
    return 0;
  }
  const auto found = checks.find(name);
  if (found == checks.end()) {
    std::printf("BAD %s: no such check\n", name.c_str());
    return 1;
  }
  found->second();
  std::printf("%s %s%s%s\n", failed ? "BAD" : "ok", name.c_str(), detail.empty() ? "" : ": ", detail.c_str());
  return failed;
}
