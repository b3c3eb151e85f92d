// How a block's threads copy a tile of a matrix from global to shared memory.
#pragma once

#include "attention/tiles.h"
#include "device/cp_async.h"
#include "device/schedule.h"
#include "device/thread.h"
#include "device/tile.h"

namespace llmjp::attention {

// A thread's share of copying a matrix tile by tile: its 16-byte piece of a row, in every
// rows_of_pass-th row. `source` is its first piece in the tile to copy, `step` leads to its next.
template <class T>
struct CopyShare {
  const T* source;
  int64_t step;
  uint32_t place;   // of the first piece's row among the rows that exist; "negative" before them
  uint32_t places;  // rows that exist, 0 for pieces beyond head_dim

  template <int kThreads, class Tile>
  LLMJP_DEVICE void copy(const Tile& tile) const {
    constexpr int kRowsPerPass = rows_of_pass(kThreads, Tile::kColumns);
    static_assert(Tile::kRows % kRowsPerPass == 0, "every thread copies as many pieces");
    static_assert(kRowsPerPass % 8 == 0, "the swizzle is the same in every pass");
    const auto thread = static_cast<unsigned>(device::not_before(device::thread_index()));
    T* target = tile.at(static_cast<int>(thread / Tile::kChunksPerRow),
                        static_cast<int>(thread % Tile::kChunksPerRow));
    const T* piece = source;
    LLMJP_UNROLL
    for (int pass = 0; pass < Tile::kRows / kRowsPerPass; ++pass) {
      // What does not exist becomes zero.
      device::cp_async(target + pass * kRowsPerPass * Tile::kColumns, piece,
                       place + pass * kRowsPerPass < places ? 16 : 0);
      piece += step;
    }
  }

  LLMJP_DEVICE void move(int rows, int64_t elements) {
    place += static_cast<uint32_t>(rows);
    source += elements;
  }
};

// For the tile from row `first` on of a matrix whose rows [begin, end) exist.
template <class Tile, class T>
LLMJP_DEVICE CopyShare<T> copy_share(const T* matrix, int64_t row_stride, int64_t step, int first,
                                     int begin, int end, int head_dim) {
  const auto thread = static_cast<unsigned>(device::not_before(device::thread_index()));
  const int column = static_cast<int>(thread % Tile::kChunksPerRow * Tile::kChunkElements);
  const int row = first + static_cast<int>(thread / Tile::kChunksPerRow);
  return {matrix + row * row_stride + column, step, static_cast<uint32_t>(row - begin),
          static_cast<uint32_t>(column < head_dim ? end - begin : 0)};
}

}  // namespace llmjp::attention
