// bias_dropout_add on the CPU: what bias_dropout_add.h describes, with the bias as fp32, where x
// and its row are of one type or the row is fp32. The caller shares rows over its threads.
#pragma once

#include <cstdint>

#include "host/dropout_cpu.h"
#include "host/dtype.h"

namespace llmjp::activation {

// r = dropout(x + bias) + residual of rows [first, last) of a tensor of this width; strides are
// elements from one row to the next, bias may be null, r is contiguous.
struct CpuForward {
  const void* x;  // of x_type
  const float* bias;
  const void* residual;  // of row_type
  void* r;               // of row_type
  int64_t width;
  int64_t x_stride;
  int64_t residual_stride;
  host::CpuDropout dropout;
  host::DType x_type;
  host::DType row_type;

  void run(int64_t first, int64_t last) const;
};

// dx = dropout(dr), contiguous, of rows [first, last); their sum is added to sums [width]. Either
// may be null.
struct CpuBackward {
  const void* dr;  // of row_type
  void* dx;        // of x_type
  int64_t width;
  int64_t dr_stride;
  host::CpuDropout dropout;
  host::DType x_type;
  host::DType row_type;

  void run(int64_t first, int64_t last, float* sums) const;
};

}  // namespace llmjp::activation
