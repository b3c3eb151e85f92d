// The launchers by head dimension of the tile and element type, as in attention_launch.h.
#pragma once

#include "attention/attention_decode.h"
#include "host/stream.h"

namespace llmjp::attention {

// head_dim is at most kHeadDim.
template <int kHeadDim, class T>
void launch_attention_decode(const AttentionDecode& params, host::Stream stream);

}  // namespace llmjp::attention
