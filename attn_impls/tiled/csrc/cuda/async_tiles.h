// The tile sizes of tiled-async for each width of tile: the one place to tune.
//
// Bounds that hold them: 255 registers a thread, of which a forward warp needs rows * columns / 32 for its output and
// rows * keys / 32 for its scores; and the shared memory of a block, 227 KB on an H100 and 163 KB on an A100, which
// `kBlocks` blocks of one multiprocessor divide between them.
#pragma once

#include "fragments.h"

namespace attn {

// For heads of up to `columns` numbers: warps of 16 * row_pieces queries; keys a tile, of which one is in use and one
// on its way.
template <int columns, int row_pieces, int warps, int keys, int blocks>
struct ForwardTiles {
  static constexpr int kColumns = columns, kRowPieces = row_pieces, kWarpRows = row_pieces * kPiece, kWarps = warps;
  static constexpr int kQueries = kWarpRows * warps, kKeys = keys, kBlocks = blocks;
};

// 32 queries a warp where the registers allow it: then a fragment of K or V that was read from shared memory takes part
// in four products, and reading keeps up with multiplying.
template <int columns>
struct AsyncForward;
template <>
struct AsyncForward<32> : ForwardTiles<32, 2, 4, 64, 2> {};
template <>
struct AsyncForward<64> : ForwardTiles<64, 2, 4, 64, 3> {};
template <>
struct AsyncForward<96> : ForwardTiles<96, 2, 4, 64, 2> {};
template <>
struct AsyncForward<128> : ForwardTiles<128, 2, 4, 64, 2> {};
template <>
struct AsyncForward<192> : ForwardTiles<192, 1, 8, 64, 1> {};
template <>
struct AsyncForward<256> : ForwardTiles<256, 1, 8, 32, 1> {};

// Backward, a block of keys: warps of 16 * key_pieces keys; queries a tile, of which `step` are worked on at a time;
// the warps that share the rows of dQ between them, the others share its columns; dQ columns a warp sums up at a time;
// which of the warp's keys and values stay in registers: what a warp reads from shared memory again and again, it
// shares the bandwidth of that memory for.
template <int columns, int key_pieces, int warps, int queries, int step, int dq_row_warps, int dq_columns, int blocks,
          bool holds_keys, bool holds_values>
struct KeyBlocks {
  static constexpr int kColumns = columns, kKeyPieces = key_pieces, kWarpKeys = key_pieces * kPiece, kWarps = warps;
  static constexpr int kKeys = kWarpKeys * warps, kQueries = queries, kStep = step;
  static constexpr int kDqRowWarps = dq_row_warps, kDqColumnWarps = warps / dq_row_warps, kDqColumns = dq_columns;
  static constexpr int kBlocks = blocks;
  static constexpr bool kHoldsKeys = holds_keys, kHoldsValues = holds_values;
  // dV, dK and dQ each in a pass of its own, because two of them together do not fit the registers.
  static constexpr bool kSplit = columns > 128;
};
template <int columns>
struct AsyncBackward;
template <>
struct AsyncBackward<32> : KeyBlocks<32, 2, 4, 64, 32, 2, 16, 2, true, true> {};
template <>
struct AsyncBackward<64> : KeyBlocks<64, 2, 4, 64, 32, 2, 32, 2, false, false> {};
template <>
struct AsyncBackward<96> : KeyBlocks<96, 1, 8, 64, 16, 4, 48, 1, false, false> {};
template <>
struct AsyncBackward<128> : KeyBlocks<128, 1, 8, 64, 32, 2, 32, 1, true, false> {};
template <>
struct AsyncBackward<192> : KeyBlocks<192, 1, 4, 32, 32, 2, 32, 1, false, false> {};
template <>
struct AsyncBackward<256> : KeyBlocks<256, 1, 4, 32, 32, 2, 32, 1, false, false> {};

// The same for dK and dV without dQ, a kernel that needs other registers.
template <int columns>
struct AsyncBackwardApart : AsyncBackward<columns> {};
template <>
struct AsyncBackwardApart<64> : KeyBlocks<64, 2, 4, 64, 16, 2, 32, 2, false, false> {};
template <>
struct AsyncBackwardApart<128> : KeyBlocks<128, 1, 8, 64, 32, 2, 32, 1, false, false> {};

// Backward, a block of queries, for the deterministic dQ and the split one.
template <int columns>
struct AsyncBackwardQueries : ForwardTiles<columns, 1, 4, columns <= 128 ? 64 : 32, 1> {};

}  // namespace attn
