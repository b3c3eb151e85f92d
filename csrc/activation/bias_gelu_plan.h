// The plan of a bias_gelu call: a warp keeps the bias of its columns in registers while it goes
// over its rows.
#pragma once

#include <cstdint>

#include "activation/bias_gelu.h"
#include "activation/row_plan.h"

namespace llmjp::activation {

// Rows of a forward warp, all on their way at a time: 16 KB a block. A warp of backward goes over
// many rows, two at a time, each of dy and x.
constexpr int kForwardRows = 4;
constexpr int kBackwardRows = 2;

// Blocks that share a multiprocessor: 64 and 80 registers a thread.
constexpr int kForwardBlocks = 4;
constexpr int kBackwardBlocks = 3;

inline int row_chunk(const BiasGeluForward& p) {
  return whole_chunk(p.x_type, p.width, {p.x, p.bias, p.y}, {p.x_stride});
}

inline int row_chunk(const BiasGeluBackward& p) {
  return whole_chunk(p.x_type, p.width, {p.dy, p.x, p.bias, p.dx}, {p.dy_stride, p.x_stride});
}

// As many groups as give each warp its rows of one pass.
inline RowPlan forward_plan(const BiasGeluForward& p, int chunk) {
  const int64_t groups = (p.rows + kForwardRows - 1) / kForwardRows;
  return row_plan(p.width, chunk, groups, INT64_MAX);
}

// As many warps as are resident at once, so that few partial sums of dbias arise: a group is a row
// of the workspace. Without a bias there are none, and a warp has its rows of one pass.
inline RowPlan backward_plan(const BiasGeluBackward& p, int chunk, int multiprocessors) {
  const int64_t groups = (p.rows + kBackwardRows - 1) / kBackwardRows;
  const int64_t resident = int64_t{kBackwardBlocks} * multiprocessors * kWarps;
  return row_plan(p.width, chunk, groups, p.bias == nullptr ? INT64_MAX : resident);
}

}  // namespace llmjp::activation
