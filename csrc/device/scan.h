// Reductions of any type and running sums, over a warp and over a block.
#pragma once

#include "device/platform.h"
#include "device/shared.h"
#include "device/shuffle.h"
#include "device/thread.h"

namespace llmjp::device {

// All lanes get the result. `combine` commutes.
template <class T, class Combine>
LLMJP_DEVICE T warp_reduce(T value, Combine combine) {
  LLMJP_UNROLL
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2)
    value = combine(value, shuffle_xor(value, bits));
  return value;
}

// The sum of the values of this lane and those below it.
template <class T>
LLMJP_DEVICE T warp_running_sum(T value) {
  LLMJP_UNROLL
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const T below = shuffle_up(value, distance);
    if (lane_index() >= distance) value += below;
  }
  return value;
}

// Combines one value of each thread; all get the result. `neutral` changes nothing. `scratch` is
// shared memory for kWarps values, free again when the next barrier is passed; the one that is
// passed first makes sure that nobody reads it any more.
template <int kWarps, class T, class Combine>
LLMJP_DEVICE T block_reduce(T value, T neutral, Combine combine, T* scratch) {
  value = warp_reduce(value, combine);
  sync_threads();
  if (lane_index() == 0) shared_store(&scratch[warp_index()], value);
  sync_threads();
  const int lane = lane_index();
  return warp_reduce(lane < kWarps ? shared_load<T>(&scratch[lane]) : neutral, combine);
}

// What the threads before this one hold together, and all threads. Scratch as for block_reduce.
template <class T>
struct BlockSum {
  T before;
  T total;
};

template <int kWarps, class T>
LLMJP_DEVICE BlockSum<T> block_running_sum(T value, T* scratch) {
  const T up_to_here = warp_running_sum(value);
  sync_threads();
  if (lane_index() == kWarpSize - 1) shared_store(&scratch[warp_index()], up_to_here);
  sync_threads();
  const int lane = lane_index();
  const T warps = warp_running_sum(lane < kWarps ? shared_load<T>(&scratch[lane]) : T{});
  const T warps_before = shuffle(warps, warp_index() == 0 ? 0 : warp_index() - 1);
  return {up_to_here - value + (warp_index() == 0 ? T{} : warps_before),
          shuffle(warps, kWarpSize - 1)};
}

}  // namespace llmjp::device
