// The launchers by head dimension of the tile and element type. A head dimension is one generated
// translation unit (CMakeLists.txt holds the table); attention.cpp picks among them.
#pragma once

#include <limits>

#include "attention/attention.h"
#include "host/stream.h"

namespace llmjp::device {
struct float16;
struct bfloat16;
}  // namespace llmjp::device

namespace llmjp::attention {

// head_dim is at most kHeadDim.
template <int kHeadDim, class T>
void launch_attention_forward(const AttentionForward& params, host::Stream stream);
template <int kHeadDim, class T>
void launch_attention_backward(const AttentionBackward& params, host::Stream stream);

// The plain kernels fold the scale into the exponent, where it must not turn the order of the
// scores round.
inline bool is_general(const AttentionProblem& params) {
  return params.softcap > 0.0f || params.alibi != nullptr || params.dropout > 0.0f ||
         !(params.scale >= std::numeric_limits<float>::min());
}

}  // namespace llmjp::attention
