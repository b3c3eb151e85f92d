// How a row of a given width is spread over threads, and which plan a launch takes. Host-side and
// torch-free: the bindings' workspace and the launchers ask the same functions.
//
// A row that fits is held whole: by one warp up to 1,024 elements (no barrier, four rows a block),
// by 4 to 32 warps above. 8 to 32 elements a thread keep one to eight 16-byte loads in flight
// before the first reduction needs them, which at half occupancy is 32 to 64 KB a multiprocessor:
// more than latency × bandwidth asks (A100: 2.0 TB/s × 0.6 µs / 108 = 11 KB). The steps of 8
// elements leave at most a third of a block's lanes without a column.
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

// Calls visit(tile) with the first tile that a row of `width` fits in; false if none does.
template <class... Tiles, class Visit>
bool visit_tile(TileList<Tiles...>, int64_t width, Visit visit) {
  return ((width <= Tiles::kWidth && (visit(Tiles{}), true)) || ...);
}

// Threads of the kernels that loop over a row instead of holding it.
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
template <class AnyTile>
constexpr int kBackwardBlocks = blocks_by_registers(AnyTile::kElements <= 8     ? 64
                                                    : AnyTile::kElements <= 16  ? 80
                                                    : AnyTile::kWarpsPerRow > 1 ? 128
                                                                                : 168,
                                                    AnyTile::kThreads);

struct BackwardPlan {
  bool resident;  // the tile kernel; else the looping pair
  int stages;     // cp.async buffers of the tile kernel: 2, or 1 where shared memory is short
  int64_t shared_bytes;  // of one block
  int64_t blocks;
  int64_t groups;        // partial sums per column: rows of the workspace
  int64_t column_tiles;  // of the looping column kernel
};

// The looping column kernel: one warp takes 32 · chunk columns, and `groups` warps share the rows
// of each.
inline BackwardPlan looping_backward_plan(int64_t rows, int64_t width, int chunk,
                                          int multiprocessors) {
  constexpr int kWarps = kLoopThreads / 32;
  BackwardPlan plan{};
  plan.column_tiles = (width + 32 * chunk - 1) / (32 * chunk);
  const int64_t wanted = std::max<int64_t>(1, 4 * multiprocessors / plan.column_tiles);
  const int64_t slabs = std::min(wanted, (rows + kWarps - 1) / kWarps);
  plan.blocks = plan.column_tiles * slabs;
  plan.groups = slabs * kWarps;
  return plan;
}

template <class AnyTile>
BackwardPlan tile_backward_plan(int64_t rows, int64_t bytes_per_element, int multiprocessors,
                                int64_t shared_per_block, int64_t shared_per_multiprocessor) {
  constexpr int64_t kScratchBytes =
      2 * 2 * sizeof(float) * AnyTile::kWarpsPerRow;  // block_sum, twice
  constexpr int64_t kScratch = (kScratchBytes + 15) / 16 * 16;
  constexpr int64_t kReserved = 1024;  // a block's shared memory that CUDA keeps for itself
  const int64_t stage = AnyTile::kWidth * AnyTile::kRowsPerBlock * bytes_per_element;
  BackwardPlan plan{};
  plan.stages = kScratch + 2 * stage <= shared_per_block ? 2 : 1;
  plan.shared_bytes = kScratch + plan.stages * stage;
  plan.resident = plan.shared_bytes <= shared_per_block;
  const int64_t by_shared =
      std::max<int64_t>(1, shared_per_multiprocessor / (plan.shared_bytes + kReserved));
  const int64_t per_multiprocessor = std::min<int64_t>(kBackwardBlocks<AnyTile>, by_shared);
  const int64_t blocks_for_rows = (rows + AnyTile::kRowsPerBlock - 1) / AnyTile::kRowsPerBlock;
  plan.blocks = std::min(multiprocessors * per_multiprocessor, blocks_for_rows);
  plan.groups = plan.blocks * AnyTile::kRowsPerBlock;
  return plan;
}

}  // namespace llmjp::norm
