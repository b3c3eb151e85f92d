// Sums over a warp and over the warps that share a row. Every lane gets the result, added in one
// fixed order.
#pragma once

#include "device/platform.h"
#include "device/shared.h"
#include "device/shuffle.h"
#include "device/thread.h"

namespace llmjp::device {

// A butterfly: after step s each lane holds the sum over its 2^s neighbours, the same bits in all
// of them because floating-point addition commutes.
LLMJP_DEVICE float warp_sum(float value) {
  LLMJP_UNROLL
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) value += shuffle_xor(value, bits);
  return value;
}

LLMJP_DEVICE float warp_max(float value) {
  LLMJP_UNROLL
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    const float other = shuffle_xor(value, bits);
    value = other > value ? other : value;
  }
  return value;
}

// Sums kValues numbers at once over the kWarps warps of the block, in two shuffles' depth and one
// barrier. `scratch` is shared memory for kValues · kWarps floats, which nobody may still be
// reading: callers that reduce again without another barrier between alternate between two.
template <int kWarps, int kValues>
LLMJP_DEVICE void block_sum(float (&values)[kValues], float* scratch) {
  LLMJP_UNROLL
  for (int i = 0; i < kValues; ++i) values[i] = warp_sum(values[i]);
  if constexpr (kWarps > 1) {
    if (lane_index() == 0) {
      LLMJP_UNROLL
      for (int i = 0; i < kValues; ++i)
        shared_store(&scratch[i * kWarps + warp_index()], values[i]);
    }
    sync_threads();
    LLMJP_UNROLL
    for (int i = 0; i < kValues; ++i) {
      const int lane = lane_index();
      values[i] = warp_sum(lane < kWarps ? shared_load<float>(&scratch[i * kWarps + lane]) : 0.0f);
    }
  }
}

}  // namespace llmjp::device
