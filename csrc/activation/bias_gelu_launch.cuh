// Launches of the bias_gelu kernels for one combination of types.
#pragma once

#include "activation/bias_gelu_kernels.cuh"
#include "activation/bias_gelu_launch.h"
#include "activation/bias_gelu_plan.h"
#include "device/dtype.h"
#include "host/device_limits.h"
#include "host/launch.h"

namespace llmjp::activation {

template <class X, class B, int kChunk>
void launch_forward_chunks(const BiasGeluForward& params, host::Stream stream) {
  const RowPlan plan = forward_plan(params, kChunk);
  host::launch("bias_gelu_forward",
               params.tanh ? bias_gelu_forward_kernel<X, B, true, kChunk>
                           : bias_gelu_forward_kernel<X, B, false, kChunk>,
               {plan.blocks, kThreads, 0, stream}, params, plan.column_tiles);
}

template <class X, class B>
void launch_bias_gelu_forward(const BiasGeluForward& params, host::Stream stream) {
  if (row_chunk(params) == 1) {
    launch_forward_chunks<X, B, 1>(params, stream);
  } else {
    launch_forward_chunks<X, B, device::kVectorElements<X>>(params, stream);
  }
}

template <class X, class B, int kChunk>
void launch_backward_chunks(const BiasGeluBackward& params, const RowPlan& plan,
                            host::Stream stream) {
  host::launch("bias_gelu_backward",
               params.tanh ? bias_gelu_backward_kernel<X, B, true, kChunk>
                           : bias_gelu_backward_kernel<X, B, false, kChunk>,
               {plan.blocks, kThreads, 0, stream}, params, plan.column_tiles, plan.groups);
}

template <class X, class B>
void launch_bias_gelu_backward(const BiasGeluBackward& params, host::Stream stream) {
  const int chunk = row_chunk(params);
  const RowPlan plan = backward_plan(params, chunk, host::device_limits().multiprocessors);
  if (chunk == 1) {
    launch_backward_chunks<X, B, 1>(params, plan, stream);
  } else {
    launch_backward_chunks<X, B, device::kVectorElements<X>>(params, plan, stream);
  }
  if (params.dbias == nullptr) return;
  host::launch("bias_gelu_backward_group_sum", bias_gelu_backward_group_sum_kernel<B>,
               {(params.width + 31) / 32, device::kGroupSumThreads,
                device::kGroupSumThreads * int64_t{sizeof(float)}, stream},
               params, plan.groups);
}

}  // namespace llmjp::activation
