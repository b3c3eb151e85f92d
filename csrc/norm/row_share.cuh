// What a backward tile has of the rows: whole ones, or a part of each whose sums it exchanges with
// the blocks that have the others.
#pragma once

#include "device/atomic.h"
#include "device/reduce.h"
#include "device/vector.h"

namespace llmjp::norm {

struct WholeRows {
  int64_t group;  // takes rows group, group + groups, …
  int64_t groups;
  int chunks;  // of a row

  LLMJP_DEVICE int64_t first_column() const { return 0; }
  LLMJP_DEVICE void total(float (&)[2], int) const {}
};

// Block part + parts · group of the grid has the columns from `column` on of its group's rows. All
// blocks are resident at once. A block writes its two sums into one of two sets of slots, in turn,
// and counts itself as arrived; when all have, each adds the slots in the same order. The set of
// this row is free again two rows later: a block that has got there has seen all others arrive at
// the row between, which they did after they had read it.
struct RowPart {
  int64_t group;
  int64_t groups;
  int64_t column;
  int chunks;  // of this part
  int part;
  int parts;
  float* slots;  // [2][parts][2] of the group
  int* arrived;  // of the group, 0 when the kernel starts

  LLMJP_DEVICE int64_t first_column() const { return column; }

  // From sums of this part to those of the row, in every thread. `step` counts the group's rows.
  LLMJP_DEVICE void total(float (&sums)[2], int step) const {
    using device::Vector;
    float* set = slots + step % 2 * 2 * parts;
    if (device::thread_index() == 0) {
      device::store(set + 2 * part, Vector<float, 2>{{sums[0], sums[1]}});
      device::thread_fence();
      device::atomic_add(arrived, 1);
    }
    if (device::lane_index() == 0) {
      device::spin_wait([&] { return device::load_acquire(arrived) >= (step + 1) * parts; });
    }
    device::sync_warp();
    sums[0] = sums[1] = 0.0f;
    LLMJP_DO_NOT_UNROLL
    for (int other = device::lane_index(); other < parts; other += device::kWarpSize) {
      const auto theirs = device::load<Vector<float, 2>>(set + 2 * other);
      sums[0] += theirs.elements[0];
      sums[1] += theirs.elements[1];
    }
    sums[0] = device::warp_sum(sums[0]);
    sums[1] = device::warp_sum(sums[1]);
  }
};

}  // namespace llmjp::norm
