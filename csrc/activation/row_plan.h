// How rows of an elementwise op are spread over warps: decided from shape, types and alignment
// alone, so that a launcher and the workspace it is given agree. Host-side and torch-free.
//
// A warp takes 32 chunks of 16 bytes side by side and, of these columns, the rows of its group.
// Neighbouring warps have neighbouring columns.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "host/dtype.h"

namespace llmjp::activation {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

struct RowPlan {
  int64_t column_tiles;
  int64_t groups;
  int64_t blocks;
};

// Elements that a thread moves at once: 16 bytes of this type if every row of every operand allows
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

// One long row of which no column is special, such as all rows of an op without a bias, as up to
// four rows one behind the other: a warp of one row would have one load of each operand on its way.
// Each is made of whole chunks.
inline void split_row(int64_t& rows, int64_t& width, std::initializer_list<int64_t*> strides) {
  constexpr int64_t kMostOfChunk = 8;
  if (rows != 1) return;
  for (const int64_t parts : {4, 2}) {
    if (width % (parts * kMostOfChunk) != 0) continue;
    rows = parts;
    width /= parts;
    for (int64_t* stride : strides) *stride = width;
    return;
  }
}

inline RowPlan row_plan(int64_t width, int chunk, int64_t groups_of_one_column,
                        int64_t wanted_warps) {
  RowPlan plan{};
  plan.column_tiles = (width + 32 * chunk - 1) / (32 * chunk);
  plan.groups = std::clamp<int64_t>(wanted_warps / plan.column_tiles, 1, groups_of_one_column);
  plan.blocks = (plan.column_tiles * plan.groups + kWarps - 1) / kWarps;
  return plan;
}

}  // namespace llmjp::activation
