// The order in which a launch computes its query tiles, and which block computes which.
//
// There are as many blocks as multiprocessors, and each computes tile after tile until none is left. Where the rows of
// a head are no whole number of tiles, its first tile begins before the first row, and what lies before is neither
// loaded nor written: under a causal mask this is the tile with the fewest keys, and the last one would be that with
// the most.
#pragma once

#include "../cuda/params.h"
#include "../cuda/query_tile.h"
#include "../cuda/tile_mask.h"

namespace attn {

// Heads, those of all batches in a row, are taken a section at a time, and what is no whole section comes first. Within
// a section the last tile of every head comes first, then the tile before it of every head: under a causal mask the
// longest first, so that what is left for the end is short. But the first tiles of a section read all of its keys and
// values, and those after them nothing but queries: where memory is what takes the time, `led` heads come one by one
// before, and the sections are for the end alone. Blocks begin with the tile of their own number. What follows is
// either
//   fetched   the next that nobody has, by a counter in global memory: even loads whatever the tiles cost
//   dealt     every gridDim.x-th, forth and back in turns: no memory, and even loads where tiles shrink evenly
struct Schedule {
  int tiles, heads;  // query tiles of a head; heads of all batches
  int section;       // heads
  int led;           // heads
  int* fetched;      // how many tiles were fetched, 0 at launch and again at the end; null where they are dealt

  ATTN_HOST_DEVICE int count() const { return tiles * heads; }

  __device__ int first() const { return static_cast<int>(blockIdx.x); }
  // By one thread of the block: ask for the `round`-th tile after its first, and take the answer later, as a counter's
  // takes a while to come. It is a number that is no tile where none is left.
  __device__ int ask(int round) const {
    if (fetched != nullptr) return atomicAdd(fetched, 1);
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    return round * blocks + (round % 2 ? blocks - 1 - block : block);
  }
  __device__ int answer(int asked) const {
    if (fetched == nullptr) return asked;
    // Each block asks once for each of its tiles: count() times in all, and whoever is last makes ready the next
    // launch.
    if (asked == count() - 1) *fetched = 0;
    return static_cast<int>(gridDim.x) + asked;
  }

  // Query tiles have `rows` rows.
  __device__ QueryTile tile(int index, const Shape& shape, int rows) const {
    int begin, mixed, within;  // heads of the sections before, and of this one; which of its tiles
    if (index < led * tiles) {
      begin = index / tiles, mixed = 1, within = index % tiles;
    } else {
      const int behind = index - led * tiles, rest = (heads - led) % section;
      const int after = behind - rest * tiles, of_section = section * tiles;
      begin = led + (after < 0 ? 0 : rest + after / of_section * section);
      mixed = after < 0 ? rest : section, within = after < 0 ? behind : after % of_section;
    }
    const int q_len = static_cast<int>(shape.q_len), batch_heads = static_cast<int>(shape.heads);
    const int any_head = begin + within % mixed, head = any_head % batch_heads;
    const int q1 = q_len - within / mixed * rows;
    return {any_head / batch_heads, head, head / static_cast<int>(shape.group()), q1 - rows, q1};
  }
};

}  // namespace attn
