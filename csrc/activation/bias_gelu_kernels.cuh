// bias_gelu kernels. Formulas: bias_gelu.h; how rows and columns are shared out: bias_gelu_plan.h.
//
// Bytes: forward reads x and writes y, backward reads dy and x and writes dx: 16 and 24 KB for a
// row of 4,096 bfloat16. The bias is read once a warp, and partial sums of dbias are written once a
// warp, from rows that it went over.
#pragma once

#include "activation/bias.cuh"
#include "activation/bias_gelu.h"
#include "activation/bias_gelu_plan.h"
#include "activation/gelu.cuh"
#include "activation/warp_place.cuh"
#include "device/group_sum.h"
#include "device/vector.h"

namespace llmjp::activation {

// kChunk is 1 for rows that are not 16-byte aligned.
template <class X, class B, bool kTanh, int kChunk>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kThreads, kForwardBlocks)
    bias_gelu_forward_kernel(BiasGeluForward p, int64_t column_tiles) {
  using Chunk = device::Vector<X, kChunk>;
  const WarpPlace<kChunk> place(column_tiles);
  const int64_t first_row = place.group * kForwardRows;
  if (place.column >= p.width || first_row >= p.rows) return;

  const X* x = static_cast<const X*>(p.x) + first_row * p.x_stride + place.column;
  X* y = static_cast<X*>(p.y) + first_row * p.width + place.column;
  Chunk held[kForwardRows];
  LLMJP_UNROLL
  for (int r = 0; r < kForwardRows; ++r) {
    if (first_row + r < p.rows) held[r] = device::load_once<Chunk>(x + r * p.x_stride);
  }
  float bias[kChunk];
  load_bias<B>(p.bias, place.column, bias);
  LLMJP_UNROLL
  for (int r = 0; r < kForwardRows; ++r) {
    if (first_row + r >= p.rows) return;
    float values[kChunk];
    device::to_floats(held[r], values);
    LLMJP_UNROLL
    for (int i = 0; i < kChunk; ++i) values[i] = gelu<X, kTanh>(values[i] + bias[i]);
    device::store(y + r * p.width, device::from_floats<X>(values));
  }
}

template <class X, class B, bool kTanh, int kChunk>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kThreads, kBackwardBlocks)
    bias_gelu_backward_kernel(BiasGeluBackward p, int64_t column_tiles, int64_t groups) {
  using Chunk = device::Vector<X, kChunk>;
  const WarpPlace<kChunk> place(column_tiles);
  if (place.column >= p.width || place.group >= groups) return;

  float bias[kChunk];
  load_bias<B>(p.bias, place.column, bias);
  float sums[kChunk] = {};
  // Rows group, group + groups, …: what runs at a time lies side by side.
  for (int64_t first = place.group; first < p.rows; first += kBackwardRows * groups) {
    Chunk held_dy[kBackwardRows];
    Chunk held_x[kBackwardRows];
    LLMJP_UNROLL
    for (int r = 0; r < kBackwardRows; ++r) {
      const int64_t row = first + r * groups;
      if (row < p.rows) {
        const int64_t dy_place = row * p.dy_stride + place.column;
        held_dy[r] = device::load_once<Chunk>(static_cast<const X*>(p.dy) + dy_place);
        const int64_t x_place = row * p.x_stride + place.column;
        held_x[r] = device::load_once<Chunk>(static_cast<const X*>(p.x) + x_place);
      }
    }
    LLMJP_UNROLL
    for (int r = 0; r < kBackwardRows; ++r) {
      const int64_t row = first + r * groups;
      if (row < p.rows) {
        float dy[kChunk];
        float values[kChunk];
        device::to_floats(held_dy[r], dy);
        device::to_floats(held_x[r], values);
        LLMJP_UNROLL
        for (int i = 0; i < kChunk; ++i) {
          values[i] = dy[i] * gelu_derivative<X, kTanh>(values[i] + bias[i]);
          sums[i] += values[i];
        }
        device::store(static_cast<X*>(p.dx) + row * p.width + place.column,
                      device::from_floats<X>(values));
      }
    }
  }
  if (p.dbias == nullptr) return;
  store_sums(p.workspace + place.group * p.width + place.column, sums);
}

// dbias: the sums of all groups, 32 columns a block.
template <class B>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(device::kGroupSumThreads, 1)
    bias_gelu_backward_group_sum_kernel(BiasGeluBackward p, int64_t groups) {
  device::group_sum(p.workspace, groups, p.width,
                    int64_t{device::block_index_x()} * device::kWarpSize, static_cast<B*>(p.dbias),
                    device::dynamic_shared<float>());
}

}  // namespace llmjp::activation
