// How a bias_gelu call is spread over warps: decided from shape, types and alignment alone, so that
// the launcher and the workspace it is given agree. Host-side and torch-free.
//
// A warp takes 32 chunks of 16 bytes side by side and, of these columns, the rows of its group,
// with the bias in registers. Neighbouring warps have neighbouring columns.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "activation/bias_gelu.h"

namespace llmjp::activation {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Rows of a forward warp, all on their way at a time: 16 KB a block. A warp of backward goes over
// many rows, two at a time, each of dy and x.
constexpr int kForwardRows = 4;
constexpr int kBackwardRows = 2;

// Blocks that share a multiprocessor: 64 and 80 registers a thread.
constexpr int kForwardBlocks = 4;
constexpr int kBackwardBlocks = 3;

struct RowPlan {
  int64_t column_tiles;
  int64_t groups;  // in backward also the rows of the workspace
  int64_t blocks;
};

// Elements that a thread moves at once: 16 bytes of x's type if every row of every operand allows
// it, else 1.
inline int whole_chunk(host::DType type, int64_t width, std::initializer_list<const void*> pointers,
                       std::initializer_list<int64_t> strides) {
  const int64_t chunk = 16 / host::size_in_bytes(type);
  bool whole = width % chunk == 0;
  for (const void* pointer : pointers)
    whole = whole && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  for (int64_t stride : strides) whole = whole && stride % chunk == 0;
  return whole ? static_cast<int>(chunk) : 1;
}

inline int row_chunk(const BiasGeluForward& p) {
  return whole_chunk(p.x_type, p.width, {p.x, p.bias, p.y}, {p.x_stride});
}

inline int row_chunk(const BiasGeluBackward& p) {
  return whole_chunk(p.x_type, p.width, {p.dy, p.x, p.bias, p.dx}, {p.dy_stride, p.x_stride});
}

inline RowPlan row_plan(int64_t width, int chunk, int64_t groups_of_one_column,
                        int64_t wanted_warps) {
  RowPlan plan{};
  plan.column_tiles = (width + 32 * chunk - 1) / (32 * chunk);
  plan.groups = std::clamp<int64_t>(wanted_warps / plan.column_tiles, 1, groups_of_one_column);
  plan.blocks = (plan.column_tiles * plan.groups + kWarps - 1) / kWarps;
  return plan;
}

// As many groups as give each warp its rows of one pass.
inline RowPlan forward_plan(const BiasGeluForward& p, int chunk) {
  const int64_t groups = (p.rows + kForwardRows - 1) / kForwardRows;
  return row_plan(p.width, chunk, groups, INT64_MAX);
}

// As many warps as are resident at once, so that few partial sums of dbias arise. Without a bias
// there are none, and a warp has its rows of one pass.
inline RowPlan backward_plan(const BiasGeluBackward& p, int chunk, int multiprocessors) {
  const int64_t groups = (p.rows + kBackwardRows - 1) / kBackwardRows;
  const int64_t resident = int64_t{kBackwardBlocks} * multiprocessors * kWarps;
  return row_plan(p.width, chunk, groups, p.bias == nullptr ? INT64_MAX : resident);
}

}  // namespace llmjp::activation
