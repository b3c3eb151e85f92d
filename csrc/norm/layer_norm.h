// LayerNorm over the last dimension, with an optional residual addition before it, and dropout
// before that:
//
//   r    = dropout(x) + residual   (rounded to row_type; r = x where there is no residual)
//   mean = Σ r / width,   rstd = 1 / sqrt(Σ (r − mean)² / width + eps)
//   y    = (r − mean) · rstd · weight + bias
//
// and backward, with x̂ = (r − mean) · rstd and g = dy · weight:
//
//   dr_sum  = rstd · (g − mean(g) − x̂ · mean(g · x̂)) + dr
//   dx      = dropout(dr_sum)      (with the mask of forward, drawn again)
//   dweight = Σ_rows dy · x̂,   dbias = Σ_rows dy
//
// (Ba, Kiros, Hinton: Layer Normalization, arXiv 1607.06450.) Statistics and sums are fp32.
//
// RMSNorm (Zhang, Sennrich, arXiv 1910.07467) is the same with mean = 0 and mean(g) = 0 and without
// a bias: parameters with `centred` false.
//
// Supported (x, row, weight) types: one type for all; 16-bit x and row with fp32 weight; 16-bit x
// with fp32 row and weight.
#pragma once

#include <cstdint>

#include "host/dtype.h"
#include "host/stream.h"

namespace llmjp::norm {

struct LayerNormForward {
  const void* x;          // [rows, width] of x_type
  const void* residual;   // [rows, width] of row_type, or null
  const void* weight;     // [width] of weight_type
  const void* bias;       // [width] of weight_type, or null, as it is unless centred
  const int64_t* random;  // {seed, offset} of dropout; null without, as it is without a residual
  void* y;                // [rows, width] of x_type, contiguous
  void* r;                // [rows, width] of row_type, contiguous; written only with a residual
  float* mean;            // [rows]; null unless centred
  float* rstd;            // [rows]
  int64_t rows;
  int64_t width;
  int64_t x_stride;  // elements from one row to the next
  int64_t residual_stride;
  float eps;
  float dropout;  // share that is dropped, below 1
  bool centred;
  host::DType x_type;
  host::DType row_type;
  host::DType weight_type;
};

struct LayerNormBackward {
  const void* dy;      // [rows, width] of x_type
  const void* dr;      // [rows, width] of row_type, or null: the gradient that arrives at r itself
  const void* r;       // [rows, width] of row_type: what was normalised
  const void* weight;  // [width] of weight_type
  const float* mean;   // [rows]; null unless centred
  const float* rstd;   // [rows]
  const int64_t* random;  // {seed, offset} of dropout, or null
  void* dr_sum;           // [rows, width] of row_type, contiguous
  void* dx;          // [rows, width] of x_type, contiguous; null exactly where random is: as dr_sum
  void* dweight;     // [width] of weight_type
  void* dbias;       // [width] of weight_type, or null, as it is unless centred
  float* workspace;  // layer_norm_backward_workspace() floats
  int64_t rows;
  int64_t width;
  int64_t dy_stride;  // elements from one row to the next
  int64_t dr_stride;
  int64_t r_stride;
  float dropout;
  bool centred;
  host::DType x_type;
  host::DType row_type;
  host::DType weight_type;
};

void layer_norm_forward(const LayerNormForward& params, host::Stream stream);

// Floats of workspace that layer_norm_backward needs on the current device for this shape and these
// types.
int64_t layer_norm_backward_workspace(const LayerNormBackward& params);

void layer_norm_backward(const LayerNormBackward& params, host::Stream stream);

}  // namespace llmjp::norm
