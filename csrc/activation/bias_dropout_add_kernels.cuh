// bias_dropout_add kernels. Formulas: bias_dropout_add.h; how rows and columns are shared out:
// bias_dropout_add_plan.h.
//
// Bytes: forward reads x and residual and writes r, backward reads dr and writes dx: 24 and 16 KB
// for a row of 4,096 bfloat16. The bias is read once a warp, and partial sums of dbias are written
// once a warp, from rows that it went over. A mask is drawn, never read.
#pragma once

#include <type_traits>

#include "activation/bias.cuh"
#include "activation/bias_dropout_add.h"
#include "activation/bias_dropout_add_plan.h"
#include "activation/warp_place.cuh"
#include "device/dropout.h"
#include "device/group_sum.h"
#include "device/store_row.h"
#include "device/vector.h"

namespace llmjp::activation {

// kChunk is 1 for rows that are not 16-byte aligned.
template <class X, class R, class B, bool kDropout, int kChunk>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kThreads, kAddForwardBlocks)
    bias_dropout_add_forward_kernel(BiasDropoutAddForward p, int64_t column_tiles) {
  using device::Vector;
  const WarpPlace<kChunk> place(column_tiles);
  const int64_t first_row = place.group * kAddForwardRows;
  if (place.column >= p.width || first_row >= p.rows) return;

  const X* x = static_cast<const X*>(p.x) + first_row * p.x_stride + place.column;
  const R* residual =
      static_cast<const R*>(p.residual) + first_row * p.residual_stride + place.column;
  R* r = static_cast<R*>(p.r) + first_row * p.width + place.column;
  Vector<X, kChunk> held_x[kAddForwardRows];
  Vector<R, kChunk> held_residual[kAddForwardRows];
  LLMJP_UNROLL
  for (int i = 0; i < kAddForwardRows; ++i) {
    if (first_row + i < p.rows) {
      held_x[i] = device::load_once<Vector<X, kChunk>>(x + i * p.x_stride);
      held_residual[i] = device::load_once<Vector<R, kChunk>>(residual + i * p.residual_stride);
    }
  }
  float bias[kChunk];
  load_bias<B>(p.bias, place.column, bias);
  LLMJP_UNROLL
  for (int i = 0; i < kAddForwardRows; ++i) {
    if (first_row + i >= p.rows) return;
    float values[kChunk];
    float added[kChunk];
    device::to_floats(held_x[i], values);
    device::to_floats(held_residual[i], added);
    LLMJP_UNROLL
    for (int j = 0; j < kChunk; ++j) values[j] += bias[j];
    if constexpr (kDropout) {
      device::Dropout(p.random, p.dropout)
          .apply(device::Dropout::row_position(first_row + i, p.width), place.column, values);
    }
    LLMJP_UNROLL
    for (int j = 0; j < kChunk; ++j) values[j] += added[j];
    device::store(r + i * p.width, device::from_floats<R>(values));
  }
}

template <class X, class R, bool kDropout, int kChunk>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kThreads, kAddBackwardBlocks)
    bias_dropout_add_backward_kernel(BiasDropoutAddBackward p, int64_t column_tiles,
                                     int64_t groups) {
  using device::Vector;
  const WarpPlace<kChunk> place(column_tiles);
  if (place.column >= p.width || place.group >= groups) return;

  float sums[kChunk] = {};
  // Rows group, group + groups, …: what runs at a time lies side by side.
  for (int64_t first = place.group; first < p.rows; first += kAddBackwardRows * groups) {
    Vector<R, kChunk> held[kAddBackwardRows];
    LLMJP_UNROLL
    for (int i = 0; i < kAddBackwardRows; ++i) {
      const int64_t row = first + i * groups;
      if (row < p.rows) {
        const R* dr = static_cast<const R*>(p.dr) + row * p.dr_stride + place.column;
        held[i] = device::load_once<Vector<R, kChunk>>(dr);
      }
    }
    LLMJP_UNROLL
    for (int i = 0; i < kAddBackwardRows; ++i) {
      const int64_t row = first + i * groups;
      if (row < p.rows) {
        float values[kChunk];
        device::to_floats(held[i], values);
        if constexpr (kDropout) {
          device::Dropout(p.random, p.dropout)
              .apply(device::Dropout::row_position(row, p.width), place.column, values);
        }
        LLMJP_UNROLL
        for (int j = 0; j < kChunk; ++j) sums[j] += values[j];
        if constexpr (kDropout || !std::is_same_v<X, R>) {  // else dx is dr
          device::store_rounded(static_cast<X*>(p.dx) + row * p.width + place.column, values);
        }
      }
    }
  }
  if (p.dbias == nullptr) return;
  store_sums(p.workspace + place.group * p.width + place.column, sums);
}

// dbias: the sums of all groups, 32 columns a block.
template <class B>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(device::kGroupSumThreads, 1)
    bias_dropout_add_backward_group_sum_kernel(BiasDropoutAddBackward p, int64_t groups) {
  device::group_sum(p.workspace, groups, p.width,
                    int64_t{device::block_index_x()} * device::kWarpSize, static_cast<B*>(p.dbias),
                    device::dynamic_shared<float>());
}

}  // namespace llmjp::activation
