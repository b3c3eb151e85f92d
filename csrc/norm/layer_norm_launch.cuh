// Launches of the LayerNorm kernels for one combination of types.
#pragma once

#include "device/dtype.h"
#include "host/device_limits.h"
#include "host/launch_resident.h"
#include "norm/layer_norm_backward.cuh"
#include "norm/layer_norm_backward_loop.cuh"
#include "norm/layer_norm_forward.cuh"
#include "norm/layer_norm_forward_loop.cuh"
#include "norm/layer_norm_forward_wide.cuh"
#include "norm/layer_norm_launch.h"
#include "norm/layer_norm_plan.h"

namespace llmjp::norm {

template <class X, class R, class W, bool kCentred, bool kDropout>
void launch_forward_loop(const LayerNormForward& params, host::Stream stream) {
  constexpr int64_t kScratch = 2 * sizeof(float) * kLoopThreads / 32;
  host::launch("layer_norm_forward_loop",
               layer_norm_forward_loop_kernel<X, R, W, kCentred, kDropout>,
               {params.rows, kLoopThreads, kScratch, stream}, params);
}

template <class X, class R, class W, bool kCentred, bool kDropout>
void launch_forward_wide(const LayerNormForward& params, host::Stream stream) {
  constexpr int64_t kScratch = 2 * sizeof(float) * kWideThreads / 32;
  constexpr int64_t kChunkBytes = 16 * kWideThreads;
  const int64_t row_bytes = params.width * int64_t{sizeof(R)};
  const int64_t chunks = (row_bytes + kChunkBytes - 1) / kChunkBytes - kWideChunks;
  const int64_t room = (host::device_limits().shared_bytes_per_block - kScratch) / kChunkBytes;
  const int64_t shared_chunks = std::clamp<int64_t>(chunks, 0, room);
  host::launch("layer_norm_forward_wide",
               layer_norm_forward_wide_kernel<X, R, W, kCentred, kDropout>,
               {params.rows, kWideThreads, kScratch + shared_chunks * kChunkBytes, stream}, params,
               static_cast<int>(shared_chunks));
}

template <class X, class R, class W, bool kCentred, bool kDropout>
void launch_forward(const LayerNormForward& params, host::Stream stream) {
  if (row_chunk(params) == 1) {
    launch_forward_loop<X, R, W, kCentred, kDropout>(params, stream);
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
  if (!launched) launch_forward_wide<X, R, W, kCentred, kDropout>(params, stream);
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

template <class X, class R, class W, bool kCentred>
void launch_backward_loop(const LayerNormBackward& params, const BackwardPlan& plan,
                          host::Stream stream) {
  constexpr int64_t kScratch = 2 * sizeof(float) * kLoopThreads / 32;
  host::launch("layer_norm_backward_loop", layer_norm_backward_loop_kernel<X, R, W, kCentred>,
               {params.rows, kLoopThreads, kScratch, stream}, params);
  host::launch("layer_norm_backward_columns", layer_norm_backward_columns_kernel<X, R, kCentred>,
               {plan.blocks, kLoopThreads, 0, stream}, params, plan.column_tiles, plan.groups);
}

template <class X, class R, class W, bool kCentred>
void launch_backward_parts(const LayerNormBackward& params, BackwardPlan& plan,
                           host::Stream stream) {
  constexpr const char* kName = "layer_norm_backward_parts";
  constexpr int kThreads = BackwardPart::kThreads;
  const auto kernel = layer_norm_backward_parts_kernel<X, R, W, kCentred, BackwardPart>;
  plan.fit_into(host::resident_blocks(kName, kernel, kThreads, plan.shared_bytes));
  float* arrived = params.workspace + plan.sums_floats(params) + plan.slot_floats();
  host::clear(arrived, plan.groups * int64_t{sizeof(int)}, stream);
  host::launch_resident(kName, kernel, {plan.blocks, kThreads, plan.shared_bytes, stream}, params,
                        plan.stages, plan.parts);
}

// dx, and the groups' sums for dweight and dbias. Leaves in the plan how many groups there are.
template <class X, class R, class W, bool kCentred>
void launch_backward_rows(const LayerNormBackward& params, BackwardPlan& plan,
                          host::Stream stream) {
  switch (plan.kernel) {
    case BackwardPlan::Kernel::kTile:
      visit_tile(BackwardTiles{}, params.width, [&](auto tile) {
        using RowTile = decltype(tile);
        host::launch(
            "layer_norm_backward_tile", layer_norm_backward_tile_kernel<X, R, W, kCentred, RowTile>,
            {plan.blocks, RowTile::kThreads, plan.shared_bytes, stream}, params, plan.stages);
      });
      return;
    case BackwardPlan::Kernel::kParts:
      return launch_backward_parts<X, R, W, kCentred>(params, plan, stream);
    case BackwardPlan::Kernel::kLoop:
      return launch_backward_loop<X, R, W, kCentred>(params, plan, stream);
  }
}

template <class X, class R, class W>
void launch_layer_norm_backward(const LayerNormBackward& params, host::Stream stream) {
  BackwardPlan plan = plan_backward(params, host::device_limits());
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
