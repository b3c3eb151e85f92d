// How a row of a given width is spread over threads, and which plan a launch takes. Host-side and
// torch-free: the bindings' workspace and the launchers ask the same functions.
//
// A row that fits is held whole: by one warp up to 1,024 elements (no barrier, four rows a block),
// by 4 to 32 warps above, by a whole multiprocessor or several blocks where it is wider yet. 8 to
// 32 elements a thread keep one to eight 16-byte loads in flight before the first reduction needs
// them, which at half occupancy is 32 to 64 KB a multiprocessor: more than latency × bandwidth asks
// (A100: 2.0 TB/s × 0.6 µs / 108 = 11 KB). The steps of 8 elements leave at most a third of a
// block's lanes without a column.
#pragma once

#include <algorithm>
#include <cstdint>

namespace llmjp::norm {

template <int kWarps, int kElementsPerThread>
struct Tile {
  static constexpr int kWarpsPerRow = kWarps;
  static constexpr int kElements = kElementsPerThread;
  static constexpr int kThreadsPerRow = 32 * kWarps;
  static constexpr int kRowsPerBlock = kWarps == 1 ? 4 : 1;
  static constexpr int kThreads = kThreadsPerRow * kRowsPerBlock;
  static constexpr int64_t kWidth = int64_t{kThreadsPerRow} * kElements;
};

template <class... Tiles>
struct TileList {};

// Forward holds a row in up to 32 registers a thread. 1,024 threads leave 64 for everything, so
// that the widest tile has 24.
using ForwardTiles =
    TileList<Tile<1, 8>, Tile<1, 16>, Tile<1, 32>, Tile<4, 16>, Tile<4, 24>, Tile<4, 32>,
             Tile<8, 24>, Tile<8, 32>, Tile<16, 24>, Tile<16, 32>, Tile<32, 24>>;

// Backward holds two fp32 sums a column in registers (64 of 128 at 32 elements), which 32 warps a
// block would not leave room for.
using BackwardTiles = TileList<Tile<1, 8>, Tile<1, 16>, Tile<1, 32>, Tile<4, 16>, Tile<4, 24>,
                               Tile<4, 32>, Tile<8, 24>, Tile<8, 32>, Tile<16, 24>, Tile<16, 32>>;

// Rows that are wider are held by one block. Of a thread's 128 registers 64 keep 16 chunks of 16
// bytes, all that the kernel itself leaves: 128 KB, a row of 65,536 16-bit elements. Shared memory
// keeps as much of an fp32 row, where there are 128 KB of it (sm_80: 163, sm_90: 227).
constexpr int kWideThreads = 512;
constexpr int kWideChunks = 16;

// Backward shares a row that is wider among blocks, which hold this much of it each: two sums a
// column in 48 of 128 registers, so that two blocks share a multiprocessor and one computes while
// the other waits for sums. 32 elements a thread would leave too few registers for that.
using BackwardPart = Tile<8, 24>;

// Calls visit(tile) with the first tile that a row of `width` fits in; false if none does.
template <class... Tiles, class Visit>
bool visit_tile(TileList<Tiles...>, int64_t width, Visit visit) {
  return ((width <= Tiles::kWidth && (visit(Tiles{}), true)) || ...);
}

// Threads of the kernels that loop over a row instead of holding it: one that is not aligned.
constexpr int kLoopThreads = 256;

// Blocks that share a multiprocessor's 65,536 registers when a thread has this many. The numbers
// are what nvcc needs to spill nothing in any type (tests read its report).
constexpr int blocks_by_registers(int registers, int threads) {
  return 65536 / (registers * threads);
}

template <class AnyTile>
constexpr int kForwardBlocks =
    blocks_by_registers(AnyTile::kElements <= 24 ? 64 : 128, AnyTile::kThreads);

// Four rows of 1,024 a block leave room in shared memory for three blocks at most where a row is
// fp32, which may take the registers that a fourth would have.
constexpr int backward_registers(int warps_per_row, int elements) {
  if (elements <= 8) return 64;
  if (elements <= 16) return warps_per_row > 1 ? 80 : 96;
  return warps_per_row > 1 ? 128 : 168;
}
template <class AnyTile>
constexpr int kBackwardBlocks = blocks_by_registers(
    backward_registers(AnyTile::kWarpsPerRow, AnyTile::kElements), AnyTile::kThreads);

}  // namespace llmjp::norm
