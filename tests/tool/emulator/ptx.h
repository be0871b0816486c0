// In place of csrc/cuda/ptx.h: the same functions by the words of the PTX ISA, written without the layouts of
// fragments.h.
#pragma once

namespace attn {

inline uint32_t shared_memory_start() {
  return 0;
}
inline int thread_read_anew() {
  return static_cast<int>(threadIdx.x);
}
inline void store_shared(uint32_t at, uint4 x) {
  std::memcpy(emulator::at(at, 16), &x, 16);
}
inline void store_shared(uint32_t at, uint32_t x) {
  std::memcpy(emulator::at(at, 4), &x, 4);
}
inline uint4 load_shared_16_bytes(uint32_t at) {
  return std::bit_cast<uint4>(*reinterpret_cast<const std::array<char, 16>*>(emulator::at(at, 16)));
}
inline uint32_t load_shared_word(uint32_t at) {
  return std::bit_cast<uint32_t>(*reinterpret_cast<const std::array<char, 4>*>(emulator::at(at, 4)));
}
inline float2 load_shared_two_floats(uint32_t at) {
  return std::bit_cast<float2>(*reinterpret_cast<const std::array<char, 8>*>(emulator::at(at, 8)));
}

struct MatrixLoad {
  uint32_t at;
  uint32_t* to;
};
// Lane 8i + r points to row r of matrix i. Lane l receives, of each matrix, row l / 4, columns 2 (l % 4) and the next;
// transposed, the same of the transposed matrix. The 8 rows of a matrix must lie in different banks.
template <bool transposed>
void emulate_load_matrices(uint32_t at, uint32_t (&to)[4]) {
  static const char instruction = 0;
  MatrixLoad load{at, to};
  emulator::with_warp(&instruction, load, [](MatrixLoad** lanes) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t numbers[8][8];
      unsigned banks = 0;
      for (int row = 0; row < 8; ++row) {
        const uint32_t from = lanes[8 * matrix + row]->at;
        std::memcpy(numbers[row], emulator::at(from, 16), 16);
        banks |= 1u << from / 16 % 8;
      }
      if (banks != 0xff) emulator::fail("a bank conflict in ldmatrix");
      for (int lane = 0; lane < 32; ++lane) {
        const int row = lane / 4, column = lane % 4 * 2;
        const uint32_t low = transposed ? numbers[column][row] : numbers[row][column];
        const uint32_t high = transposed ? numbers[column + 1][row] : numbers[row][column + 1];
        lanes[lane]->to[matrix] = low | high << 16;
      }
    }
  });
}
inline void load_matrices(uint32_t at, uint32_t (&to)[4]) {
  emulate_load_matrices<false>(at, to);
}
inline void load_matrices_transposed(uint32_t at, uint32_t (&to)[4]) {
  emulate_load_matrices<true>(at, to);
}

struct MatrixStore {
  uint32_t at;
  const uint32_t* from;
};
inline void store_matrices(uint32_t at, const uint32_t (&from)[4]) {
  static const char instruction = 0;
  MatrixStore store{at, from};
  emulator::with_warp(&instruction, store, [](MatrixStore** lanes) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      unsigned banks = 0;
      for (int row = 0; row < 8; ++row) {
        const uint32_t to = lanes[8 * matrix + row]->at;
        for (int i = 0; i < 4; ++i) std::memcpy(emulator::at(to, 16) + i * 4, lanes[row * 4 + i]->from + matrix, 4);
        banks |= 1u << to / 16 % 8;
      }
      if (banks != 0xff) emulator::fail("a bank conflict in stmatrix");
    }
  });
}

template <typename T>
float2 unpack(uint32_t word) {
  T low, high;
  low.x = static_cast<uint16_t>(word);
  high.x = static_cast<uint16_t>(word >> 16);
  return {static_cast<float>(low), static_cast<float>(high)};
}
template <typename T>
uint32_t pack(float first, float second) {
  return T(first).x | static_cast<uint32_t>(T(second).x) << 16;
}

struct Multiply {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
};
// With g = lane / 4 and t = lane % 4, number i of a lane is, in the words of the ISA,
//   A (i < 8)  row g for i < 2 and 4 <= i < 6, else g + 8;  column 2t + i % 2, plus 8 for i >= 4
//   B (i < 4)  row 2t + i % 2, plus 8 for i >= 2;  column g
//   C (i < 4)  row g for i < 2, else g + 8;  column 2t + i % 2
template <typename T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static const char instruction = 0;
  Multiply multiply{c, a, {b0, b1}};
  emulator::with_warp(&instruction, multiply, [](Multiply** lanes) {
    float left[16][16], right[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 8; ++i) {
        const float2 two = unpack<T>(lanes[lane]->a[i / 2]);
        left[i < 2 || (4 <= i && i < 6) ? g : g + 8][2 * t + i % 2 + (i >= 4 ? 8 : 0)] = i % 2 ? two.y : two.x;
      }
      for (int i = 0; i < 4; ++i) {
        const float2 two = unpack<T>(lanes[lane]->b[i / 2]);
        right[2 * t + i % 2 + (i >= 2 ? 8 : 0)][g] = i % 2 ? two.y : two.x;
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = i < 2 ? lane / 4 : lane / 4 + 8, column = lane % 4 * 2 + i % 2;
        float sum = lanes[lane]->c[i];
        for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k][column];
        lanes[lane]->c[i] = sum;
      }
    }
  });
}

inline float fast_exp2(float x) {
  return std::exp2(x);
}
// A copy happens as late as it may, when it is waited for, and destroys what it will overwrite as soon as it is
// started.
inline void start_copy(uint32_t to, const void* from, bool valid) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) emulator::fail("a misaligned copy from global memory");
  std::memset(emulator::at(to, 16), emulator::kPoison, 16);
  emulator::fibers[emulator::current].groups.back().push_back({to, from, valid});
}
inline void start_copy(uint32_t to, const void* from) {
  start_copy(to, from, true);
}
inline void commit_copies() {
  emulator::fibers[emulator::current].groups.emplace_back();
}
template <int pending>
void wait_for_copies() {
  auto& groups = emulator::fibers[emulator::current].groups;
  for (size_t i = 0; i + 1 + pending < groups.size(); ++i) {
    for (const auto& copy : groups[i]) emulator::run_copy(copy);
    groups[i].clear();
  }
}

inline void add_to_global(float* to, const float (&x)[4]) {
  for (int i = 0; i < 4; ++i) to[i] += x[i];
}

}  // namespace attn
