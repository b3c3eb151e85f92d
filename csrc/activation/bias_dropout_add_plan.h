// The plan of a bias_dropout_add call: a warp keeps the bias of its columns in registers while it
// goes over its rows.
#pragma once

#include <cstdint>

#include "activation/bias_dropout_add.h"
#include "activation/row_plan.h"

namespace llmjp::activation {

// Rows of a forward warp, of x and residual each, all on their way at a time: 16 KB a block. A warp
// of backward goes over many rows of dr, four at a time.
constexpr int kAddForwardRows = 2;
constexpr int kAddBackwardRows = 4;

// Blocks that share a multiprocessor: 64 and 80 registers a thread.
constexpr int kAddForwardBlocks = 4;
constexpr int kAddBackwardBlocks = 3;

// A chunk is 16 bytes of the wider of the two types, which is the row's.
inline int row_chunk(const BiasDropoutAddForward& p) {
  return whole_chunk(p.row_type, p.width, {p.x, p.bias, p.residual, p.r},
                     {p.x_stride, p.residual_stride});
}

inline int row_chunk(const BiasDropoutAddBackward& p) {
  return whole_chunk(p.row_type, p.width, {p.dr, p.dx}, {p.dr_stride});
}

// As many groups as give each warp its rows of one pass.
inline RowPlan forward_plan(const BiasDropoutAddForward& p, int chunk) {
  const int64_t groups = (p.rows + kAddForwardRows - 1) / kAddForwardRows;
  return row_plan(p.width, chunk, groups, INT64_MAX);
}

// As many warps as are resident at once where there are sums for dbias, a row of the workspace
// each; else each warp has its rows of one pass.
inline RowPlan backward_plan(const BiasDropoutAddBackward& p, int chunk, int multiprocessors) {
  const int64_t groups = (p.rows + kAddBackwardRows - 1) / kAddBackwardRows;
  const int64_t resident = int64_t{kAddBackwardBlocks} * multiprocessors * kWarps;
  return row_plan(p.width, chunk, groups, p.dbias == nullptr ? INT64_MAX : resident);
}

}  // namespace llmjp::activation
