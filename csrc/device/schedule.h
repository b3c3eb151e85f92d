// What the compiler may not move. Loop invariants that it computes ahead and keeps take registers
// from a loop that needs them all.
#pragma once

#include "device/platform.h"

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

}  // namespace llmjp::device
