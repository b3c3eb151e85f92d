// cp.async: copies from global to shared memory that pass no register and run while the thread goes
// on (sm_80). A copy may be read by its own thread after cp_async_wait_group, by others after a
// barrier as well. PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy".
#pragma once

#include "device/platform.h"

#if defined(LLMJP_SIMT)
#include "simt/instructions.h"
#endif

namespace llmjp::device {

#if defined(__CUDACC__)

// kBytes (4, 8 or 16), both addresses aligned to them. Of these `bytes_read` come from memory, the
// rest is zero; with 0 the global address is not touched. 16 bytes pass by the first-level cache
// (.cg), fewer cannot (.ca).
template <int kBytes = 16>
LLMJP_DEVICE void cp_async(void* shared, const void* global, int bytes_read = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
                 "r"(bytes_read)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(address), "l"(global),
                 "r"(bytes_read), "n"(kBytes)
                 : "memory");
  }
}

// The copies issued since the last commit become one group.
LLMJP_DEVICE void cp_async_commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all of this thread's groups but the newest kInFlight.
template <int kInFlight>
LLMJP_DEVICE void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kInFlight) : "memory");
}

#else

template <int kBytes = 16>
void cp_async(void* shared, const void* global, int bytes_read = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  simt::cp_async(shared, global, kBytes, bytes_read);
}

inline void cp_async_commit_group() { simt::cp_async_commit_group(); }

template <int kInFlight>
void cp_async_wait_group() {
  simt::cp_async_wait_group(kInFlight);
}

#endif

}  // namespace llmjp::device
