// bias_dropout_add on the CPU, of float32 and bfloat16 rows: what bias_dropout_add.h describes,
// with the masks of device/dropout.h. Vectorised over Philox' counters; the caller shares rows over
// its threads.
#pragma once

#include <cstdint>

#include "host/dtype.h"

namespace llmjp::activation {

struct CpuDropout {
  bool drops;  // false: nothing is dropped, the rest does not matter
  uint64_t seed;
  uint64_t offset;
  float share;
};

// Whether a pair of types is one that these take: both float32, both bfloat16, or bfloat16 beside
// float32 rows.
bool cpu_takes(host::DType x_type, host::DType row_type);

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
  CpuDropout dropout;
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
  CpuDropout dropout;
  host::DType x_type;
  host::DType row_type;

  void run(int64_t first, int64_t last, float* sums) const;
};

}  // namespace llmjp::activation
