// Launches of the swiglu kernels for one type.
#pragma once

#include "activation/swiglu_kernels.cuh"
#include "activation/swiglu_launch.h"
#include "device/dtype.h"
#include "host/launch.h"

namespace llmjp::activation {

// As many groups as give each warp its rows of one pass.
inline RowPlan one_pass(int64_t rows, int64_t width, int chunk, int rows_of_warp) {
  return row_plan(width, chunk, (rows + rows_of_warp - 1) / rows_of_warp, INT64_MAX);
}

template <class T>
void launch_swiglu_forward(const SwigluForward& params, host::Stream stream) {
  const int chunk = whole_chunk(params.type, params.width, {params.gate, params.up, params.y},
                                {params.gate_stride, params.up_stride});
  const RowPlan plan = one_pass(params.rows, params.width, chunk, kSwigluForwardRows);
  host::launch("swiglu_forward",
               chunk == 1 ? swiglu_forward_kernel<T, 1>
                          : swiglu_forward_kernel<T, device::kVectorElements<T>>,
               {plan.blocks, kThreads, 0, stream}, params, plan.column_tiles);
}

template <class T>
void launch_swiglu_backward(const SwigluBackward& params, host::Stream stream) {
  const int chunk = whole_chunk(params.type, params.width,
                                {params.dy, params.gate, params.up, params.dgate, params.dup},
                                {params.dy_stride, params.gate_stride, params.up_stride});
  const RowPlan plan = one_pass(params.rows, params.width, chunk, kSwigluBackwardRows);
  host::launch("swiglu_backward",
               chunk == 1 ? swiglu_backward_kernel<T, 1>
                          : swiglu_backward_kernel<T, device::kVectorElements<T>>,
               {plan.blocks, kThreads, 0, stream}, params, plan.column_tiles);
}

}  // namespace llmjp::activation
