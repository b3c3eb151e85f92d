// Which kernel a LayerNorm call takes: decided from shape, types, alignment and the GPU alone, so
// that the launcher and the workspace it is given agree. Host-side and torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <utility>

#include "host/device_limits.h"
#include "norm/layer_norm.h"
#include "norm/tiles.h"

namespace llmjp::norm {

// Elements that a thread moves at once: 16 bytes of the row's type if every row of every operand
// allows it, else 1. Operands come with the elements from one row to the next; null ones fit.
inline int row_chunk(host::DType row_type, int64_t width,
                     std::initializer_list<std::pair<const void*, int64_t>> operands) {
  const int64_t chunk = 16 / host::size_in_bytes(row_type);
  bool whole = width % chunk == 0;
  for (const auto& [pointer, stride] : operands) {
    whole = whole && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
    whole = whole && (pointer == nullptr || stride % chunk == 0);
  }
  return whole ? static_cast<int>(chunk) : 1;
}

inline int row_chunk(const LayerNormForward& p) {
  return row_chunk(p.row_type, p.width,
                   {{p.x, p.x_stride},
                    {p.residual, p.residual_stride},
                    {p.y, p.width},
                    {p.r, p.width},
                    {p.weight, 0},
                    {p.bias, 0}});
}

inline int row_chunk(const LayerNormBackward& p) {
  return row_chunk(p.row_type, p.width,
                   {{p.dy, p.dy_stride},
                    {p.dr, p.dr_stride},
                    {p.r, p.r_stride},
                    {p.dr_sum, p.width},
                    {p.dx, p.width},
                    {p.weight, 0}});
}

struct BackwardPlan {
  enum class Kernel { kTile, kParts, kLoop };

  Kernel kernel = Kernel::kLoop;
  int stages;            // cp.async buffers of a tile: 2, or 1 where shared memory is short
  int64_t shared_bytes;  // of one block
  int64_t blocks;
  int64_t groups;        // partial sums per column: rows of the workspace
  int64_t column_tiles;  // of the looping column kernel
  int parts;             // blocks that share a row

  // Of kParts: what the blocks of a group tell each other behind the partial sums, two sets of two
  // sums for each, and how many have.
  int64_t sums_floats(const LayerNormBackward& p) const {
    return (p.centred ? 2 : 1) * groups * p.width;  // of dweight, and of dbias
  }
  int64_t slot_floats() const { return parts == 1 ? 0 : groups * 4 * parts; }
  int64_t workspace_floats(const LayerNormBackward& p) const {
    return sums_floats(p) + slot_floats() + (parts == 1 ? 0 : groups);
  }

  // Of kParts: fewer groups, whose blocks all find room at once; one, for CUDA to refuse, if none
  // does. They take less of the workspace.
  void fit_into(int64_t resident_blocks) {
    groups = std::clamp<int64_t>(resident_blocks / parts, 1, groups);
    blocks = groups * parts;
  }
};

// Of the kernels that loop: one warp takes 32 columns, and `groups` warps share the rows of each.
inline BackwardPlan looping_backward_plan(int64_t rows, int64_t width, int multiprocessors) {
  constexpr int kWarps = kLoopThreads / 32;
  BackwardPlan plan{};
  plan.kernel = BackwardPlan::Kernel::kLoop;
  plan.parts = 1;
  plan.column_tiles = (width + 31) / 32;
  const int64_t wanted = std::max<int64_t>(1, 4 * multiprocessors / plan.column_tiles);
  const int64_t slabs = std::min(wanted, (rows + kWarps - 1) / kWarps);
  plan.blocks = plan.column_tiles * slabs;
  plan.groups = slabs * kWarps;
  return plan;
}

// Of tiles that hold a row, or one of `parts` of it; kLoop where they find no room.
template <class AnyTile>
BackwardPlan tile_backward_plan(int64_t rows, int parts, int64_t bytes_per_element,
                                const host::DeviceLimits& limits) {
  constexpr int64_t kScratchBytes =
      2 * 2 * sizeof(float) * AnyTile::kWarpsPerRow;  // block_sum, twice
  constexpr int64_t kScratch = (kScratchBytes + 15) / 16 * 16;
  constexpr int64_t kReserved = 1024;  // a block's shared memory that CUDA keeps for itself
  const int64_t stage = AnyTile::kWidth * AnyTile::kRowsPerBlock * bytes_per_element;
  const int64_t blocks_for_rows =
      (rows + AnyTile::kRowsPerBlock - 1) / AnyTile::kRowsPerBlock * parts;
  for (int stages = 2; stages >= 1; --stages) {
    const int64_t shared_bytes = kScratch + stages * stage;
    if (shared_bytes > limits.shared_bytes_per_block) continue;
    const int64_t by_shared =
        std::max<int64_t>(1, limits.shared_bytes_per_multiprocessor / (shared_bytes + kReserved));
    const int64_t resident =
        limits.multiprocessors * std::min<int64_t>(kBackwardBlocks<AnyTile>, by_shared);
    if (resident < parts) continue;
    BackwardPlan plan{};
    plan.kernel = parts == 1 ? BackwardPlan::Kernel::kTile : BackwardPlan::Kernel::kParts;
    plan.stages = stages;
    plan.shared_bytes = shared_bytes;
    plan.blocks = std::min(resident / parts * parts, blocks_for_rows);
    plan.groups = plan.blocks * AnyTile::kRowsPerBlock / parts;
    plan.parts = parts;
    return plan;
  }
  return {};
}

inline BackwardPlan plan_backward(const LayerNormBackward& p, const host::DeviceLimits& limits) {
  BackwardPlan plan{};
  if (row_chunk(p) > 1) {
    const int64_t row_bytes = host::size_in_bytes(p.row_type) * (p.dr == nullptr ? 1 : 2);
    const int64_t bytes_per_element = host::size_in_bytes(p.x_type) + row_bytes;
    visit_tile(BackwardTiles{}, p.width, [&](auto tile) {
      plan = tile_backward_plan<decltype(tile)>(p.rows, 1, bytes_per_element, limits);
    });
    if (plan.kernel == BackwardPlan::Kernel::kLoop) {
      const int64_t parts =
          std::max<int64_t>(2, (p.width + BackwardPart::kWidth - 1) / BackwardPart::kWidth);
      plan = tile_backward_plan<BackwardPart>(p.rows, static_cast<int>(parts), bytes_per_element,
                                              limits);
    }
  }
  if (plan.kernel == BackwardPlan::Kernel::kLoop) {
    plan = looping_backward_plan(p.rows, p.width, limits.multiprocessors);
  }
  return plan;
}

}  // namespace llmjp::norm
