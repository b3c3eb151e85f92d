// Atomics on shared memory. In csrc/simt a thread is interrupted only where it waits, so a plain
// access is atomic. It is checked as a read, which may meet others but no plain write by another
// thread with no barrier between; a plain read too early is not seen.
#pragma once

#include "device/platform.h"

#if defined(LLMJP_SIMT)
#include "simt/engine.h"
#endif

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

inline void check_shared_atomic(const uint32_t* address) {
  simt::Thread& thread = simt::current_thread();
  thread.block->shared.check_read(thread, address, sizeof(*address));
}

inline uint32_t shared_atomic_add(uint32_t* address, uint32_t value) {
  check_shared_atomic(address);
  const uint32_t old = *address;
  *address = old + value;
  return old;
}
inline uint32_t shared_atomic_or(uint32_t* address, uint32_t value) {
  check_shared_atomic(address);
  const uint32_t old = *address;
  *address = old | value;
  return old;
}

#endif

}  // namespace llmjp::device
