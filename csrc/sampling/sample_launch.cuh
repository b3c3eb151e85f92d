// Launches of the sampling kernel for one type of logits: one block a row, with more threads for a
// row that has work for them.
#pragma once

#include <string>

#include "device/dtype.h"
#include "host/device_limits.h"
#include "host/error.h"
#include "host/launch.h"
#include "sampling/sample_kernel.cuh"
#include "sampling/sample_launch.h"

namespace llmjp::sampling {

template <class X>
void launch_sample(const Sample& params, host::Stream stream) {
  const auto launch = [&](auto kernel, int threads, int64_t shared_bytes, int64_t words_of_seen) {
    if (params.previous_length > 0) shared_bytes += words_of_seen * int64_t{sizeof(uint32_t)};
    if (shared_bytes > host::device_limits().shared_bytes_per_block) {
      throw host::Unsupported("sample: previous ids of " + std::to_string(params.classes) +
                              " ids need " + std::to_string(shared_bytes) +
                              " bytes of shared memory, this GPU has " +
                              std::to_string(host::device_limits().shared_bytes_per_block));
    }
    host::launch("sample", kernel, {params.rows, threads, shared_bytes, stream}, params);
  };
  if (params.classes * int64_t{sizeof(X)} <= kShortRowBytes) {
    launch(sample_kernel<X, kShortRowThreads>, kShortRowThreads, kSharedBytes<X, kShortRowThreads>,
           Row<X, kShortRowThreads>::words_of_seen(params.classes));
  } else {
    launch(sample_kernel<X, kLongRowThreads>, kLongRowThreads, kSharedBytes<X, kLongRowThreads>,
           Row<X, kLongRowThreads>::words_of_seen(params.classes));
  }
}

}  // namespace llmjp::sampling
