// Which lane of a warp holds which number: the fragment layouts of mma.m16n8k16 and the addressing of ldmatrix (PTX
// ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and "Warp-level matrix load instruction:
// ldmatrix").
//
// One mma multiplies A [16, 16] by B [16, 8] into C [16, 8]. Write g = lane / 4 and t = lane % 4. A lane holds
//   A  4 registers of 2 numbers   rows g, g + 8, g, g + 8;  columns 2t, 2t + 1, in registers 2 and 3 plus 8
//   B  2 registers of 2 numbers   rows 2t, 2t + 1, in register 1 plus 8;  column g
//   C  4 floats                   row g, in floats 2 and 3 plus 8;  columns 2t, 2t + 1
// Two C fragments side by side, rounded to 16 bits, therefore are one A fragment: the result of one product can be the
// left factor of the next and never leaves the registers.
//
// ldmatrix.x4 loads four matrices of 8 x 8 numbers. Lanes 8i ... 8i + 7 give the addresses of the 8 rows of matrix i,
// 16 bytes each, and register i of a lane becomes the numbers (g; 2t, 2t + 1) of matrix i, with .trans (2t, 2t + 1; g).
// A 16 x 16 piece of a tile is four such matrices; only their order differs:
//   down, then right   a row-major A, or two B fragments of a B [depth, columns] through .trans
//   right, then down   two B fragments of a B kept as [columns, depth], or an A kept as [depth, rows] through .trans
#pragma once

#include "../host_device.h"

namespace attn {

constexpr int kPiece = 16;  // rows and columns of a piece, and the depth of one mma
constexpr int kChunk = 8;   // 16-bit numbers in the 16 bytes that are loaded at a time

ATTN_HOST_DEVICE constexpr int accumulator_row(int lane, int index) {
  return lane / 4 + index / 2 * 8;
}
ATTN_HOST_DEVICE constexpr int accumulator_column(int lane, int index) {
  return lane % 4 * 2 + index % 2;
}

// The row of a 16 x 16 piece, and the half of that row, whose address a lane gives to ldmatrix.
struct PieceRow {
  int row, chunk;
};
ATTN_HOST_DEVICE constexpr PieceRow down_then_right(int lane) {
  return {lane % 16, lane / 16};
}
ATTN_HOST_DEVICE constexpr PieceRow right_then_down(int lane) {
  return {lane % 8 + lane / 16 * 8, lane / 8 % 2};
}

}  // namespace attn
