// Launches of the cross-entropy kernels for one type of logits: one block a row, with more threads
// for a row that has work for them.
#pragma once

#include "cross_entropy/cross_entropy_kernels.cuh"
#include "cross_entropy/cross_entropy_launch.h"
#include "device/dtype.h"
#include "host/launch.h"

namespace llmjp::cross_entropy {

template <class X>
void launch_cross_entropy_forward(const CrossEntropyForward& params, host::Stream stream) {
  const auto launch = [&](auto kernel, int threads) {
    const int64_t scratch = kScratchValues * int64_t{sizeof(float)} * threads / 32;
    host::launch("cross_entropy_forward", kernel, {params.rows, threads, scratch, stream}, params);
  };
  if (params.classes * int64_t{sizeof(X)} <= kShortRowBytes) {
    launch(cross_entropy_forward_kernel<X, kShortRowThreads>, kShortRowThreads);
  } else {
    launch(cross_entropy_forward_kernel<X, kLongRowThreads>, kLongRowThreads);
  }
}

template <class X>
void launch_cross_entropy_backward(const CrossEntropyBackward& params, host::Stream stream) {
  if (params.vocab * int64_t{sizeof(X)} <= kShortRowBytes) {
    host::launch("cross_entropy_backward", cross_entropy_backward_kernel<X, kShortRowThreads>,
                 {params.rows, kShortRowThreads, 0, stream}, params);
  } else {
    host::launch("cross_entropy_backward", cross_entropy_backward_kernel<X, kLongRowThreads>,
                 {params.rows, kLongRowThreads, 0, stream}, params);
  }
}

}  // namespace llmjp::cross_entropy
