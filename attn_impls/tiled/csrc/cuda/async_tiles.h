// The tile sizes of tiled-async for each width of tile: the one place to tune.
//
// Bounds that hold them: 255 registers a thread, of which a forward warp needs rows * columns / 32 for its output and
// rows * keys / 32 for its scores; and the shared memory of a block, 227 KB on an H100 and 163 KB on an A100, which
// `kBlocks` blocks of one multiprocessor divide between them.
#pragma once

#include "fragments.h"

namespace attn {

// warps of 16 * row_pieces queries; keys a tile; tiles in flight or in use.
template <int row_pieces, int warps, int keys, int stages, int blocks>
struct ForwardTiles {
  static constexpr int kRowPieces = row_pieces, kWarpRows = row_pieces * kPiece, kWarps = warps;
  static constexpr int kQueries = kWarpRows * warps, kKeys = keys, kStages = stages, kBlocks = blocks;
};

// 32 queries a warp where the registers allow it: then a fragment of K or V that was read from shared memory takes part
// in four products, and reading keeps up with multiplying.
template <int columns>
struct AsyncForward;
template <>
struct AsyncForward<32> : ForwardTiles<2, 4, 64, 3, 2> {};
template <>
struct AsyncForward<64> : ForwardTiles<2, 4, 64, 3, 2> {};
template <>
struct AsyncForward<96> : ForwardTiles<2, 4, 64, 3, 2> {};
template <>
struct AsyncForward<128> : ForwardTiles<2, 4, 48, 2, 2> {};
template <>
struct AsyncForward<192> : ForwardTiles<1, 8, 32, 3, 1> {};
template <>
struct AsyncForward<256> : ForwardTiles<1, 8, 32, 3, 1> {};

// Backward, a block of keys: warps of 16 * key_pieces keys; queries a tile, of which `step` are worked on at a time; the
// warps that share the rows of dQ between them, the others share its columns; dQ columns a warp sums up at a time.
// `split`: dV, dK and dQ each in a pass of its own, because two of them together do not fit the registers.
template <int key_pieces, int warps, int queries, int step, int dq_row_warps, int dq_columns, bool split, int blocks>
struct KeyBlocks {
  static constexpr int kKeyPieces = key_pieces, kWarpKeys = key_pieces * kPiece, kWarps = warps;
  static constexpr int kKeys = kWarpKeys * warps, kQueries = queries, kStep = step;
  static constexpr int kDqRowWarps = dq_row_warps, kDqColumnWarps = warps / dq_row_warps, kDqColumns = dq_columns;
  static constexpr bool kSplit = split;
  static constexpr int kBlocks = blocks;
};
template <int columns>
struct AsyncBackward;
template <>
struct AsyncBackward<32> : KeyBlocks<2, 4, 64, 32, 2, 16, false, 2> {};
template <>
struct AsyncBackward<64> : KeyBlocks<2, 4, 64, 16, 2, 16, false, 2> {};
template <>
struct AsyncBackward<96> : KeyBlocks<1, 8, 64, 16, 4, 16, false, 1> {};
template <>
struct AsyncBackward<128> : KeyBlocks<1, 8, 64, 32, 2, 32, false, 1> {};
template <>
struct AsyncBackward<192> : KeyBlocks<1, 4, 32, 32, 2, 32, true, 1> {};
template <>
struct AsyncBackward<256> : KeyBlocks<1, 4, 32, 32, 2, 32, true, 1> {};

// Backward, a block of queries, for the deterministic dQ and the split one.
template <int columns>
struct AsyncBackwardQueries : ForwardTiles<1, 4, columns <= 128 ? 64 : 32, 2, 1> {};

}  // namespace attn
