// Which kernel a LayerNorm call takes: decided from shape, types and alignment alone, so that the
// launcher and the workspace it is given agree.
#pragma once

#include <cstdint>

#include "host/device_limits.h"
#include "norm/layer_norm.h"
#include "norm/tiles.h"

namespace llmjp::norm {

inline bool is_aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

// Elements that a thread moves at once: 16 bytes of the row's type if every row of every operand
// allows it, else 1.
inline int row_chunk(const LayerNormForward& p) {
  const int64_t chunk = 16 / host::size_in_bytes(p.row_type);
  const auto fits = [&](const void* pointer, int64_t stride) {
    return is_aligned(pointer, 16) && stride % chunk == 0;
  };
  const bool whole = p.width % chunk == 0 && fits(p.x, p.x_stride) && fits(p.y, p.width) &&
                     fits(p.weight, 0) && fits(p.bias, 0) && fits(p.r, p.width) &&
                     fits(p.residual, p.residual == nullptr ? 0 : p.residual_stride);
  return whole ? static_cast<int>(chunk) : 1;
}

inline int row_chunk(const LayerNormBackward& p) {
  const int64_t chunk = 16 / host::size_in_bytes(p.row_type);
  const auto fits = [&](const void* pointer, int64_t stride) {
    return is_aligned(pointer, 16) && stride % chunk == 0;
  };
  const bool whole = p.width % chunk == 0 && fits(p.dy, p.dy_stride) && fits(p.r, p.r_stride) &&
                     fits(p.dr_sum, p.width) && fits(p.dx, p.width) && fits(p.weight, 0) &&
                     fits(p.dr, p.dr == nullptr ? 0 : p.dr_stride);
  return whole ? static_cast<int>(chunk) : 1;
}

inline BackwardPlan plan_backward(const LayerNormBackward& p, const host::DeviceLimits& limits) {
  const int chunk = row_chunk(p);
  BackwardPlan plan{};
  if (chunk > 1) {
    const int64_t row_bytes = host::size_in_bytes(p.row_type) * (p.dr == nullptr ? 1 : 2);
    const int64_t bytes_per_element = host::size_in_bytes(p.x_type) + row_bytes;
    visit_tile(BackwardTiles{}, p.width, [&](auto tile) {
      plan = tile_backward_plan<decltype(tile)>(p.rows, bytes_per_element, limits.multiprocessors,
                                                limits.shared_bytes_per_block,
                                                limits.shared_bytes_per_multiprocessor);
    });
  }
  if (!plan.resident) plan = looping_backward_plan(p.rows, p.width, chunk, limits.multiprocessors);
  return plan;
}

}  // namespace llmjp::norm
