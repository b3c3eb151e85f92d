// What the current device offers to a launch.
#pragma once

#include <cstdint>

namespace llmjp::host {

struct DeviceLimits {
  int multiprocessors;
  int64_t shared_bytes_per_block;  // with the opt-in that host::launch makes
  int64_t shared_bytes_per_multiprocessor;
};

// Queried once per device; throws CudaError where there is none.
DeviceLimits device_limits();

}  // namespace llmjp::host
