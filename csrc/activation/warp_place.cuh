// Which columns and which group of rows a warp has, by the plan of row_plan.h.
#pragma once

#include <cstdint>

#include "activation/row_plan.h"
#include "device/thread.h"

namespace llmjp::activation {

// The columns and the group of the calling warp. `column` is the thread's first.
template <int kChunk>
struct WarpPlace {
  int64_t group;
  int64_t column;

  LLMJP_DEVICE explicit WarpPlace(int64_t column_tiles) {
    const int64_t warp = int64_t{device::block_index_x()} * kWarps + device::warp_index();
    group = warp / column_tiles;
    column = (warp % column_tiles * device::kWarpSize + device::lane_index()) * kChunk;
  }
};

}  // namespace llmjp::activation
