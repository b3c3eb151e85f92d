// What the compiler may not move. Loop invariants that it computes ahead and keeps take registers
// from a loop that needs them all.
#pragma once

#include "device/platform.h"
#include "device/thread.h"

namespace llmjp::device {

#if defined(__CUDACC__)

// The same value; what follows from it is computed here and not before.
LLMJP_DEVICE int not_before(int value) {
  asm volatile("" : "+r"(value));
  return value;
}
LLMJP_DEVICE uint64_t not_before(uint64_t value) {
  asm volatile("" : "+l"(value));
  return value;
}

#else

template <class T>
T not_before(T value) {
  return value;
}

#endif

// lane_index() and warp_index() so that what follows from them is computed here and not before.
// Masked, because a number known not to be negative divides by shifting.
LLMJP_DEVICE int lane_index_here() { return not_before(thread_index()) & (kWarpSize - 1); }
LLMJP_DEVICE int warp_index_here() {
  return static_cast<int>(static_cast<unsigned>(not_before(thread_index())) / kWarpSize);
}

}  // namespace llmjp::device
