// The launchers by head dimension of the tile and element type. A head dimension is one generated
// translation unit (CMakeLists.txt holds the table); attention.cpp picks among them.
#pragma once

#include <limits>

#include "attention/attention.h"
#include "attention/backward_tiles.h"
#include "attention/packed_schedule.h"
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

inline bool is_packed(const AttentionProblem& params) { return params.cu_seqlens_q != nullptr; }

// Tiles of queries that have a record in the scratch memory of the backward pass.
inline int64_t backward_records(const AttentionBackward& params) {
  if (is_packed(params)) {
    return packed_tiles(params.tokens, params.batch, kBackwardQueries) * params.heads;
  }
  return (int64_t{params.tokens} + kBackwardQueries - 1) / kBackwardQueries * params.heads *
         params.batch;
}

// The plain kernels fold the scale into the exponent, where it must not turn the order of the
// scores round.
inline bool is_general(const AttentionProblem& params) {
  return params.softcap > 0.0f || params.alibi != nullptr || params.dropout > 0.0f ||
         !(params.scale >= std::numeric_limits<float>::min());
}

}  // namespace llmjp::attention
