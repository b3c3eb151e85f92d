// Atomics on shared memory. In csrc/simt a thread is interrupted only where it waits, so a plain
// access is atomic.
#pragma once

#include "device/platform.h"

namespace llmjp::device {

// Each returns the old value.
#if defined(__CUDACC__)

LLMJP_DEVICE uint32_t shared_atomic_add(uint32_t* address, uint32_t value) {
  return atomicAdd(address, value);
}
LLMJP_DEVICE uint32_t shared_atomic_or(uint32_t* address, uint32_t value) {
  return atomicOr(address, value);
}

#else

inline uint32_t shared_atomic_add(uint32_t* address, uint32_t value) {
  const uint32_t old = *address;
  *address = old + value;
  return old;
}
inline uint32_t shared_atomic_or(uint32_t* address, uint32_t value) {
  const uint32_t old = *address;
  *address = old | value;
  return old;
}

#endif

}  // namespace llmjp::device
