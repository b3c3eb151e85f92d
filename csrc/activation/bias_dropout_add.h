// The end of a transformer's sublayer: a linear layer's bias, dropout, and the residual addition.
//
//   r = dropout(x + bias) + residual     (rounded to row_type; without a bias, or dropout, the same
//                                         without it)
//
// and backward, of dr, the gradient of r, which is the residual's as it stands:
//
//   dx    = dropout(dr)                  (with the mask of forward, drawn again)
//   dbias = Σ_rows dx, of values that are not rounded to x_type yet
//
// Dropout is that of device/dropout.h. All arithmetic is fp32.
//
// Supported (x, row, bias) types: one type for all; 16-bit x and row with fp32 bias; 16-bit x with
// fp32 row and bias.
#pragma once

#include <cstdint>

#include "host/dtype.h"
#include "host/stream.h"

namespace llmjp::activation {

struct BiasDropoutAddForward {
  const void* x;          // [rows, width] of x_type
  const void* bias;       // [width] of bias_type, or null
  const void* residual;   // [rows, width] of row_type
  const int64_t* random;  // {seed, offset} of dropout, or null
  void* r;                // [rows, width] of row_type, contiguous
  int64_t rows;
  int64_t width;
  int64_t x_stride;  // elements from one row to the next
  int64_t residual_stride;
  float dropout;  // share that is dropped, below 1
  host::DType x_type;
  host::DType row_type;
  host::DType bias_type;
};

struct BiasDropoutAddBackward {
  const void* dr;         // [rows, width] of row_type
  const int64_t* random;  // {seed, offset} of dropout, or null
  void* dx;               // [rows, width] of x_type, contiguous; null where it would be dr
  void* dbias;            // [width] of bias_type, or null
  float* workspace;       // bias_dropout_add_backward_workspace() floats, 16-byte aligned
  int64_t rows;
  int64_t width;
  int64_t dr_stride;  // elements from one row to the next
  float dropout;
  host::DType x_type;
  host::DType row_type;
  host::DType bias_type;
};

void bias_dropout_add_forward(const BiasDropoutAddForward& params, host::Stream stream);

// Floats of workspace that bias_dropout_add_backward needs on the current device for this shape and
// these types.
int64_t bias_dropout_add_backward_workspace(const BiasDropoutAddBackward& params);

void bias_dropout_add_backward(const BiasDropoutAddBackward& params, host::Stream stream);

}  // namespace llmjp::activation
