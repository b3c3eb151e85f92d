// GELU of x plus an optional bias. With u = x + bias and Φ the standard normal distribution
// function:
//
//   exact:  y = u · Φ(u)
//   tanh:   y = u / 2 · (1 + tanh(z)) = u / (1 + exp(−2z)),   z = √(2/π) · (u + 0.044715 · u³)
//
// and backward:
//
//   dx    = dy · dGELU/du
//   dbias = Σ_rows dx, of values that are not rounded to x_type yet
//
// (Hendrycks, Gimpel: Gaussian Error Linear Units, arXiv 1606.08415.) All arithmetic is fp32.
// Supported (x, bias) types: one for both, or 16-bit x with fp32 bias.
#pragma once

#include <cstdint>

#include "host/dtype.h"
#include "host/stream.h"

namespace llmjp::activation {

struct BiasGeluForward {
  const void* x;     // [rows, width] of x_type
  const void* bias;  // [width] of bias_type, or null
  void* y;           // [rows, width] of x_type, contiguous
  int64_t rows;
  int64_t width;
  int64_t x_stride;  // elements from one row to the next
  bool tanh;
  host::DType x_type;
  host::DType bias_type;  // x_type where there is no bias
};

struct BiasGeluBackward {
  const void* dy;    // [rows, width] of x_type
  const void* x;     // [rows, width] of x_type
  const void* bias;  // [width] of bias_type, or null
  void* dx;          // [rows, width] of x_type, contiguous
  void* dbias;       // [width] of bias_type; null exactly where bias is
  float* workspace;  // bias_gelu_backward_workspace() floats, 16-byte aligned
  int64_t rows;
  int64_t width;
  int64_t dy_stride;  // elements from one row to the next
  int64_t x_stride;
  bool tanh;
  host::DType x_type;
  host::DType bias_type;
};

void bias_gelu_forward(const BiasGeluForward& params, host::Stream stream);

// Floats of workspace that bias_gelu_backward needs on the current device for this shape and these
// types.
int64_t bias_gelu_backward_workspace(const BiasGeluBackward& params);

void bias_gelu_backward(const BiasGeluBackward& params, host::Stream stream);

}  // namespace llmjp::activation
