// Sums over rows without atomics, whose order would depend on timing: groups of warps that walk
// over rows keep their own sums of each column and write them to a workspace once; what is here
// adds the groups in a fixed order.
#pragma once

#include "device/dtype.h"
#include "device/platform.h"
#include "device/shared.h"
#include "device/thread.h"

namespace llmjp::device {

constexpr int kGroupSumWarps = 16;
constexpr int kGroupSumThreads = kGroupSumWarps * kWarpSize;

// The sums of 32 columns from `first_column` on over partial [groups, width], for a block of
// kGroupSumThreads: each warp adds every 16th group, then one warp the sixteen sums. `scratch` is
// shared memory for kGroupSumThreads floats.
template <class T>
LLMJP_DEVICE void group_sum(const float* partial, int64_t groups, int64_t width,
                            int64_t first_column, T* sums, float* scratch) {
  const int64_t column = first_column + lane_index();
  const int warp = warp_index();
  float sum = 0.0f;
  if (column < width) {
    for (int64_t group = warp; group < groups; group += kGroupSumWarps) {
      sum += partial[group * width + column];
    }
  }
  shared_store(&scratch[warp * kWarpSize + lane_index()], sum);
  sync_threads();
  if (warp == 0 && column < width) {
    float total = 0.0f;
    LLMJP_UNROLL
    for (int w = 0; w < kGroupSumWarps; ++w) {
      total += shared_load<float>(&scratch[w * kWarpSize + lane_index()]);
    }
    sums[column] = from_float<T>(total);
  }
}

}  // namespace llmjp::device
