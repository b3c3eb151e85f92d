// SwiGLU of two halves that a linear layer made: with σ(g) = 1 / (1 + exp(−g)),
//
//   y     = g · σ(g) · u
//   dgate = dy · u · σ(g) · (1 + g · (1 − σ(g)))
//   dup   = dy · g · σ(g)
//
// (Shazeer: GLU Variants Improve Transformer, arXiv 2002.05202.) All arithmetic is fp32; all
// operands have one type.
#pragma once

#include <cstdint>

#include "host/dtype.h"
#include "host/stream.h"

namespace llmjp::activation {

struct SwigluForward {
  const void* gate;  // [rows, width]
  const void* up;    // [rows, width]
  void* y;           // [rows, width], contiguous
  int64_t rows;
  int64_t width;
  int64_t gate_stride;  // elements from one row to the next
  int64_t up_stride;
  host::DType type;
};

struct SwigluBackward {
  const void* dy;    // [rows, width]
  const void* gate;  // [rows, width]
  const void* up;    // [rows, width]
  void* dgate;       // [rows, width], contiguous
  void* dup;         // [rows, width], contiguous
  int64_t rows;
  int64_t width;
  int64_t dy_stride;  // elements from one row to the next
  int64_t gate_stride;
  int64_t up_stride;
  host::DType type;
};

void swiglu_forward(const SwigluForward& params, host::Stream stream);
void swiglu_backward(const SwigluBackward& params, host::Stream stream);

}  // namespace llmjp::activation
