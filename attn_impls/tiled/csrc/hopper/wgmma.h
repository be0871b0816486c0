// wgmma: four warps multiply a matrix A [64, 16] by B [16, n] on the tensor cores, B and optionally A read from shared
// memory by the tensor cores themselves.
//
// Shared memory is told by a descriptor of 64 bits (PTX ISA, "Matrix descriptor" of wgmma): bits 0-13 the address,
// 16-29 the leading and 32-45 the stride dimension byte offset, each divided by 16, and 62-63 the swizzle, 1 for 128
// bytes. Tiles lie as slab_tile.h says, so two cases remain:
//   rows along the other dimension, columns along the depth ("K-major": Q, and K as B = K^T)
//       Eight rows are 1024 bytes from the next eight (stride offset). 16 columns on are 32 bytes on in the slab: the
//       exclusive or is taken of address bits, so that an offset into a row is simply added.
//   rows along the depth, columns along the other dimension ("MN-major", the transposed bit set: V as B)
//       Eight rows are 1024 bytes from the next eight (stride offset), slabs of 64 columns a slab's bytes apart
//       (leading offset). 16 rows on are 2048 bytes on.
//
// The accumulator C [64, n] is in registers: warp w holds rows 16 w ... 16 w + 15 as the C fragments of fragments.h,
// side by side. Rounded in pairs they are the A of the next product, in registers.
//
// The multiplication runs beside the thread: between start and wait its registers must not be touched. ptxas watches
// over that and, where it is not sure, makes the products wait for each other and says so (C7510 ... C7519); the build
// tests take this for an error. Everything here must be inlined for it to see.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "../cuda/tile_product.h"
#include "slab_tile.h"

namespace attn {

constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;

ATTN_HOST_DEVICE constexpr uint64_t matrix_descriptor(uint32_t address, uint32_t leading_bytes, uint32_t stride_bytes) {
  return kSwizzle128 | uint64_t{stride_bytes / 16} << 32 | uint64_t{leading_bytes / 16} << 16 | address / 16;
}

// A factor in shared memory; step(i) is its i-th 16 of depth. Descriptors are advanced by their address alone, which
// cannot overflow into the next field, as shared memory ends before 2^18.
template <typename Tile>
struct AlongRows {  // columns are the depth; `rows` from `row` on take part, a multiple of 8
  static constexpr int kTransposed = 0;
  uint64_t descriptor;

  __device__ static AlongRows of(uint32_t tile, int row = 0) {
    return {matrix_descriptor(tile + row * kSlabRowBytes, 16, kSwizzleBytes)};  // the leading offset has no use
  }
  __device__ uint64_t step(int i) const {
    constexpr int kSteps = kSlabColumns / kPiece;
    return descriptor + (i / kSteps * Tile::kSlabBytes + i % kSteps * (kPiece * 2)) / 16;
  }
};
template <typename Tile>
struct AcrossRows {  // rows are the depth
  static constexpr int kTransposed = 1;
  uint64_t descriptor;

  __device__ static AcrossRows of(uint32_t tile) { return {matrix_descriptor(tile, Tile::kSlabBytes, kSwizzleBytes)}; }
  __device__ uint64_t step(int i) const { return descriptor + i * (kPiece * kSlabRowBytes) / 16; }
};

// Registers that threads wrote are ready for the products that follow. Before the first of them.
__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Close the group of the products since the last call.
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Wait until all but the newest `pending` groups are done.
template <int pending>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// Keep the compiler from moving what it does with an accumulator across this place, which is next to a begin or wait.
template <typename C>
__device__ __forceinline__ void pin(C& c) {
#pragma unroll
  for (int n = 0; n < C::kColumnTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(c.at[0][n][i])::"memory");
  }
}

// The instructions for each n: Wgmma<T, n>::shared with A in shared memory, ::registers with A in registers. Where not
// `add`, what C held is forgotten. The assembler numbers operands in order, C's n / 2 registers first, and the text
// needs these numbers as digits.
template <typename T, int n>
struct Wgmma;

#define ATTN_NUMBERS_0                                                                              \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
  "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ATTN_NUMBERS_32 "%32, %33, %34, %35, %36, %37, %38, %39"
#define ATTN_NUMBERS_40 "%40, %41, %42, %43, %44, %45, %46, %47"
#define ATTN_NUMBERS_48 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define ATTN_NUMBERS_64 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define ATTN_NUMBERS_80 "%80, %81, %82, %83, %84, %85, %86, %87"
#define ATTN_NUMBERS_88 "%88, %89, %90, %91, %92, %93, %94, %95"
#define ATTN_NUMBERS_96                                                                          \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define ATTN_C8(n)                                                                                             \
  "+f"(c.at[0][n][0]), "+f"(c.at[0][n][1]), "+f"(c.at[0][n][2]), "+f"(c.at[0][n][3]), "+f"(c.at[0][n + 1][0]), \
      "+f"(c.at[0][n + 1][1]), "+f"(c.at[0][n + 1][2]), "+f"(c.at[0][n + 1][3])
#define ATTN_C32(n) ATTN_C8(n), ATTN_C8(n + 2), ATTN_C8(n + 4), ATTN_C8(n + 6)

#define ATTN_TEXT_64 ATTN_NUMBERS_0
#define ATTN_TEXT_80 ATTN_TEXT_64 ", " ATTN_NUMBERS_32
#define ATTN_TEXT_96 ATTN_TEXT_80 ", " ATTN_NUMBERS_40
#define ATTN_TEXT_128 ATTN_TEXT_96 ", " ATTN_NUMBERS_48
#define ATTN_TEXT_160 ATTN_TEXT_128 ", " ATTN_NUMBERS_64
#define ATTN_TEXT_176 ATTN_TEXT_160 ", " ATTN_NUMBERS_80
#define ATTN_TEXT_192 ATTN_TEXT_176 ", " ATTN_NUMBERS_88
#define ATTN_TEXT_256 ATTN_TEXT_192 ", " ATTN_NUMBERS_96
#define ATTN_REGISTERS_64 ATTN_C32(0)
#define ATTN_REGISTERS_80 ATTN_REGISTERS_64, ATTN_C8(8)
#define ATTN_REGISTERS_96 ATTN_REGISTERS_80, ATTN_C8(10)
#define ATTN_REGISTERS_128 ATTN_REGISTERS_96, ATTN_C8(12), ATTN_C8(14)
#define ATTN_REGISTERS_160 ATTN_REGISTERS_128, ATTN_C8(16), ATTN_C8(18)
#define ATTN_REGISTERS_176 ATTN_REGISTERS_160, ATTN_C8(20)
#define ATTN_REGISTERS_192 ATTN_REGISTERS_176, ATTN_C8(22)
#define ATTN_REGISTERS_256 ATTN_REGISTERS_192, ATTN_C32(24)

// N, T and its name in PTX, and the numbers of the seven operands after C's registers.
#define ATTN_WGMMA(N, T, TYPE, O0, O1, O2, O3, O4, O5, O6)                                                           \
  template <>                                                                                                        \
  struct Wgmma<T, N> {                                                                                               \
    template <int a_transposed, int b_transposed>                                                                    \
    __device__ static __forceinline__ void shared(Accumulator<1, N / 8>& c, uint64_t a, uint64_t b, bool add) {      \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #O2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N             \
                   "k16.f32." TYPE "." TYPE " {" ATTN_TEXT_##N "}, %" #O0 ", %" #O1 ", p, 1, 1, %" #O3 ", %" #O4     \
                                                               ";\n}"                                                \
                   : ATTN_REGISTERS_##N                                                                              \
                   : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(a_transposed), "n"(b_transposed));              \
    }                                                                                                                \
    template <int b_transposed>                                                                                      \
    __device__ static __forceinline__ void registers(Accumulator<1, N / 8>& c, const uint32_t (&a)[4], uint64_t b,   \
                                                     bool add) {                                                     \
      asm volatile(                                                                                                  \
          "{\n.reg .pred p;\nsetp.ne.b32 p, %" #O5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE      \
          "." TYPE " {" ATTN_TEXT_##N "}, {%" #O0 ", %" #O1 ", %" #O2 ", %" #O3 "}, %" #O4 ", p, 1, 1, %" #O6 ";\n}" \
          : ATTN_REGISTERS_##N                                                                                       \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), "n"(b_transposed));      \
    }                                                                                                                \
  };
#define ATTN_WGMMA_OF_BOTH_TYPES(N, ...)    \
  ATTN_WGMMA(N, __half, "f16", __VA_ARGS__) \
  ATTN_WGMMA(N, __nv_bfloat16, "bf16", __VA_ARGS__)

ATTN_WGMMA_OF_BOTH_TYPES(64, 32, 33, 34, 35, 36, 37, 38)
ATTN_WGMMA_OF_BOTH_TYPES(80, 40, 41, 42, 43, 44, 45, 46)
ATTN_WGMMA_OF_BOTH_TYPES(96, 48, 49, 50, 51, 52, 53, 54)
ATTN_WGMMA_OF_BOTH_TYPES(128, 64, 65, 66, 67, 68, 69, 70)
ATTN_WGMMA_OF_BOTH_TYPES(160, 80, 81, 82, 83, 84, 85, 86)
ATTN_WGMMA_OF_BOTH_TYPES(176, 88, 89, 90, 91, 92, 93, 94)
ATTN_WGMMA_OF_BOTH_TYPES(192, 96, 97, 98, 99, 100, 101, 102)
ATTN_WGMMA_OF_BOTH_TYPES(256, 128, 129, 130, 131, 132, 133, 134)

// Start c (+)= a * b over `steps` * 16 of depth, A in shared memory. With `add` not set, c begins at 0.
template <typename T, int steps, int column_tiles, typename A, typename B>
__device__ __forceinline__ void start_product(Accumulator<1, column_tiles>& c, A a, B b, bool add) {
#pragma unroll
  for (int i = 0; i < steps; ++i) {
    Wgmma<T, column_tiles * 8>::template shared<A::kTransposed, B::kTransposed>(c, a.step(i), b.step(i), add || i > 0);
  }
}
// The same with A in registers, which may hold more of the depth.
template <typename T, int steps, int column_tiles, int held, typename B>
__device__ __forceinline__ void start_product(Accumulator<1, column_tiles>& c, const Held<1, held>& a, B b,
                                              bool add = true) {
  static_assert(steps <= held);
#pragma unroll
  for (int i = 0; i < steps; ++i) {
    Wgmma<T, column_tiles * 8>::template registers<B::kTransposed>(c, a.at[0][i], b.step(i), add || i > 0);
  }
}

}  // namespace attn
