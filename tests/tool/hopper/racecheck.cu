// What does compute-sanitizer's racecheck say of a place in shared memory that one thread fills and warps read, with an
// mbarrier each way? Both kernels order what they do: PTX has bar.warp.sync order the memory of a warp. Exit status 1
// where a kernel fails or reads anything but what was filled in.
//
//   nvcc -arch=sm_90 -o racecheck racecheck.cu && compute-sanitizer --tool racecheck ./racecheck
#include <cstdint>
#include <cstdio>

constexpr int kWarp = 32, kReaders = 4, kRounds = 5;

__device__ void make(uint32_t at, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
__device__ void arrive(uint32_t at) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}
__device__ void wait(uint32_t at, uint32_t parity) {
  uint32_t ended = 0;
  while (!ended) {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}"
                 : "=r"(ended)
                 : "r"(at), "r"(parity)
                 : "memory");
  }
}

template <bool every_lane>
__device__ void hand_over(int* sums) {
  __shared__ int place;
  __shared__ uint64_t barriers[2];
  const uint32_t full = static_cast<uint32_t>(__cvta_generic_to_shared(barriers)), empty = full + 8;
  if (threadIdx.x == 0) {
    make(full, 1);
    make(empty, every_lane ? kReaders * kWarp : kReaders);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int round = 0; round < kRounds; ++round) {
      wait(empty, round % 2 ^ 1);
      *const_cast<volatile int*>(&place) = round;
      arrive(full);
    }
  } else if (threadIdx.x >= kWarp) {
    int sum = 0;
    for (int round = 0; round < kRounds; ++round) {
      wait(full, round % 2);
      sum += *const_cast<volatile int*>(&place);
      __syncwarp();
      if (every_lane || threadIdx.x % kWarp == 0) arrive(empty);
    }
    sums[threadIdx.x] = sum;
  }
}
__global__ void one_lane_arrives(int* sums) {
  hand_over<false>(sums);
}
__global__ void every_lane_arrives(int* sums) {
  hand_over<true>(sums);
}

bool right(const char* name, const int* sums) {
  const cudaError_t error = cudaDeviceSynchronize();
  int found[(1 + kReaders) * kWarp];
  cudaMemcpy(found, sums, sizeof(found), cudaMemcpyDeviceToHost);
  bool equal = error == cudaSuccess;
  for (int thread = kWarp; thread < (1 + kReaders) * kWarp; ++thread) {
    equal = equal && found[thread] == kRounds * (kRounds - 1) / 2;
  }
  std::printf("%s: %s\n", name, equal ? "right" : cudaGetErrorString(error));
  std::fflush(stdout);
  return equal;
}

int main() {
  int* sums = nullptr;
  if (cudaMalloc(&sums, (1 + kReaders) * kWarp * sizeof(int)) != cudaSuccess) return 1;
  one_lane_arrives<<<1, (1 + kReaders) * kWarp>>>(sums);
  const bool one = right("one lane arrives for its warp", sums);
  every_lane_arrives<<<1, (1 + kReaders) * kWarp>>>(sums);
  return one && right("every lane arrives", sums) ? 0 : 1;
}
