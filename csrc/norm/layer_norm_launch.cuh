// Launches of the LayerNorm kernels for one combination of types.
#pragma once

#include "device/dtype.h"
#include "host/device_limits.h"
#include "host/launch.h"
#include "norm/layer_norm_backward.cuh"
#include "norm/layer_norm_forward.cuh"
#include "norm/layer_norm_launch.h"
#include "norm/layer_norm_plan.h"

namespace llmjp::norm {

template <class X, class R, class W, bool kCentred, bool kDropout, int kChunk>
void launch_forward_loop(const LayerNormForward& params, host::Stream stream) {
  constexpr int64_t kScratch = 2 * sizeof(float) * kLoopThreads / 32;
  host::launch("layer_norm_forward_loop",
               layer_norm_forward_loop_kernel<X, R, W, kCentred, kDropout, kChunk>,
               {params.rows, kLoopThreads, kScratch, stream}, params);
}

template <class X, class R, class W, bool kCentred, bool kDropout>
void launch_forward(const LayerNormForward& params, host::Stream stream) {
  constexpr int kChunk = RowTypes<X, R>::kChunk;
  if (row_chunk(params) == 1) {
    launch_forward_loop<X, R, W, kCentred, kDropout, 1>(params, stream);
    return;
  }
  const bool launched = visit_tile(ForwardTiles{}, params.width, [&](auto tile) {
    using RowTile = decltype(tile);
    constexpr int64_t kScratch = 2 * sizeof(float) * RowTile::kWarpsPerRow;
    const int64_t blocks = (params.rows + RowTile::kRowsPerBlock - 1) / RowTile::kRowsPerBlock;
    host::launch("layer_norm_forward_tile",
                 layer_norm_forward_tile_kernel<X, R, W, kCentred, kDropout, RowTile>,
                 {blocks, RowTile::kThreads, kScratch, stream}, params);
  });
  if (!launched) launch_forward_loop<X, R, W, kCentred, kDropout, kChunk>(params, stream);
}

template <class X, class R, class W, bool kDropout>
void launch_forward_centred_or_not(const LayerNormForward& params, host::Stream stream) {
  if (params.centred) {
    launch_forward<X, R, W, true, kDropout>(params, stream);
  } else {
    launch_forward<X, R, W, false, kDropout>(params, stream);
  }
}

template <class X, class R, class W>
void launch_layer_norm_forward(const LayerNormForward& params, host::Stream stream) {
  if (params.random != nullptr) {
    launch_forward_centred_or_not<X, R, W, true>(params, stream);
  } else {
    launch_forward_centred_or_not<X, R, W, false>(params, stream);
  }
}

template <class X, class R, class W, bool kCentred, int kChunk>
void launch_backward_loop(const LayerNormBackward& params, const BackwardPlan& plan,
                          host::Stream stream) {
  constexpr int64_t kScratch = 2 * sizeof(float) * kLoopThreads / 32;
  host::launch("layer_norm_backward_loop",
               layer_norm_backward_loop_kernel<X, R, W, kCentred, kChunk>,
               {params.rows, kLoopThreads, kScratch, stream}, params);
  host::launch("layer_norm_backward_columns",
               layer_norm_backward_columns_kernel<X, R, kCentred, kChunk>,
               {plan.blocks, kLoopThreads, 0, stream}, params, plan.column_tiles, plan.groups);
}

// dx, and the groups' sums for dweight and dbias.
template <class X, class R, class W, bool kCentred>
void launch_backward_rows(const LayerNormBackward& params, const BackwardPlan& plan,
                          host::Stream stream) {
  if (plan.resident) {
    visit_tile(BackwardTiles{}, params.width, [&](auto tile) {
      using RowTile = decltype(tile);
      host::launch(
          "layer_norm_backward_tile", layer_norm_backward_tile_kernel<X, R, W, kCentred, RowTile>,
          {plan.blocks, RowTile::kThreads, plan.shared_bytes, stream}, params, plan.stages);
    });
  } else if (row_chunk(params) == 1) {
    launch_backward_loop<X, R, W, kCentred, 1>(params, plan, stream);
  } else {
    launch_backward_loop<X, R, W, kCentred, RowTypes<X, R>::kChunk>(params, plan, stream);
  }
}

template <class X, class R, class W>
void launch_layer_norm_backward(const LayerNormBackward& params, host::Stream stream) {
  const BackwardPlan plan = plan_backward(params, host::device_limits());
  if (params.centred) {
    launch_backward_rows<X, R, W, true>(params, plan, stream);
  } else {
    launch_backward_rows<X, R, W, false>(params, plan, stream);
  }
  const int64_t column_tiles = (params.width + 31) / 32;
  constexpr int kThreads = device::kGroupSumThreads;
  host::launch("layer_norm_backward_group_sum", layer_norm_backward_group_sum_kernel<W>,
               {column_tiles * (params.dbias == nullptr ? 1 : 2), kThreads,
                kThreads * int64_t{sizeof(float)}, stream},
               params, plan.groups);
}

}  // namespace llmjp::norm
