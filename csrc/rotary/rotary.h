// Rotary position embedding of queries and keys. Of each head the first 2r elements are r pairs,
// element i with i + r (or, interleaved, 2i with 2i + 1), and pair i at a token turns by its angle:
//
//   y₁ = x₁ · cos − x₂ · sin
//   y₂ = x₂ · cos + x₁ · sin
//
// The rest of the head stays as it is. The gradient is the turn back, by −sin.
// (Su et al.: RoFormer, arXiv 2104.09864.) All arithmetic is fp32.
#pragma once

#include <cstdint>

#include "host/dtype.h"
#include "host/stream.h"

namespace llmjp::rotary {

// Elements from one batch, token or head to the next; those of a head lie side by side.
struct Strides {
  int64_t batch;
  int64_t token;
  int64_t head;
};

// Queries or keys, [batch, tokens, heads, head_dim].
struct Operand {
  const void* x;
  void* y;  // may be x
  int64_t heads;
  Strides x_strides;
  Strides y_strides;
};

struct RotaryForward {
  Operand q;
  Operand k;
  const void* cos;  // [tokens, pairs] of angle_type, or one such table a batch
  const void* sin;
  int64_t batch;
  int64_t tokens;
  int64_t head_dim;
  int64_t pairs;
  int64_t angle_batch_stride;  // 0 where all batches share the angles
  bool interleaved;
  bool inverse;
  bool in_place;  // what does not turn is there already
  host::DType type;
  host::DType angle_type;  // as type, or fp32
};

// Heads of up to kMostHeadDim elements.
constexpr int64_t kMostHeadDim = 256;

void rotary_forward(const RotaryForward& params, host::Stream stream);

}  // namespace llmjp::rotary
