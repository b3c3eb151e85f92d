// bias_dropout_add on the CPU, of float32 rows: what bias_dropout_add.h describes, with the masks
// of device/dropout.h. Vectorised over Philox' counters; the caller shares rows over its threads.
#pragma once

#include <cstdint>

namespace llmjp::activation {

struct CpuDropout {
  bool drops;  // false: nothing is dropped, the rest does not matter
  uint64_t seed;
  uint64_t offset;
  float share;
};

// r = dropout(x + bias) + residual of rows [first, last) of a tensor of this width; strides are
// elements from one row to the next, bias may be null, r is contiguous.
struct CpuForward {
  const float* x;
  const float* bias;
  const float* residual;
  float* r;
  int64_t width;
  int64_t x_stride;
  int64_t residual_stride;
  CpuDropout dropout;

  void run(int64_t first, int64_t last) const;
};

// dx = dropout(dr), contiguous, of rows [first, last); their sum is added to sums [width]. Either
// may be null.
struct CpuBackward {
  const float* dr;
  float* dx;
  int64_t width;
  int64_t dr_stride;
  CpuDropout dropout;

  void run(int64_t first, int64_t last, float* sums) const;
};

}  // namespace llmjp::activation
