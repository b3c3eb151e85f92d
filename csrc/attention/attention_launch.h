// The launchers by head dimension of the tile and element type. A head dimension is one generated
// translation unit (CMakeLists.txt holds the table); attention.cpp picks among them.
#pragma once

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

}  // namespace llmjp::attention
