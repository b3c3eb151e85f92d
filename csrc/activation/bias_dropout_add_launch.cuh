// Launches of the bias_dropout_add kernels for one combination of types.
#pragma once

#include "activation/bias_dropout_add_kernels.cuh"
#include "activation/bias_dropout_add_launch.h"
#include "activation/bias_dropout_add_plan.h"
#include "device/dtype.h"
#include "host/device_limits.h"
#include "host/launch.h"

namespace llmjp::activation {

template <class X, class R, class B, int kChunk>
void launch_forward_chunks(const BiasDropoutAddForward& params, host::Stream stream) {
  const RowPlan plan = forward_plan(params, kChunk);
  host::launch("bias_dropout_add_forward",
               params.random != nullptr ? bias_dropout_add_forward_kernel<X, R, B, true, kChunk>
                                        : bias_dropout_add_forward_kernel<X, R, B, false, kChunk>,
               {plan.blocks, kThreads, 0, stream}, params, plan.column_tiles);
}

template <class X, class R, class B>
void launch_bias_dropout_add_forward(const BiasDropoutAddForward& params, host::Stream stream) {
  if (row_chunk(params) == 1) {
    launch_forward_chunks<X, R, B, 1>(params, stream);
  } else {
    launch_forward_chunks<X, R, B, device::kVectorElements<R>>(params, stream);
  }
}

template <class X, class R, int kChunk>
void launch_backward_chunks(const BiasDropoutAddBackward& params, const RowPlan& plan,
                            host::Stream stream) {
  host::launch("bias_dropout_add_backward",
               params.random != nullptr ? bias_dropout_add_backward_kernel<X, R, true, kChunk>
                                        : bias_dropout_add_backward_kernel<X, R, false, kChunk>,
               {plan.blocks, kThreads, 0, stream}, params, plan.column_tiles, plan.groups);
}

template <class X, class R, class B>
void launch_bias_dropout_add_backward(const BiasDropoutAddBackward& params, host::Stream stream) {
  const int chunk = row_chunk(params);
  const RowPlan plan = backward_plan(params, chunk, host::device_limits().multiprocessors);
  if (chunk == 1) {
    launch_backward_chunks<X, R, 1>(params, plan, stream);
  } else {
    launch_backward_chunks<X, R, device::kVectorElements<R>>(params, plan, stream);
  }
  if (params.dbias == nullptr) return;
  host::launch("bias_dropout_add_backward_group_sum", bias_dropout_add_backward_group_sum_kernel<B>,
               {(params.width + 31) / 32, device::kGroupSumThreads,
                device::kGroupSumThreads * int64_t{sizeof(float)}, stream},
               params, plan.groups);
}

}  // namespace llmjp::activation
