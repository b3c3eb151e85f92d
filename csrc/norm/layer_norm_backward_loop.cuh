// LayerNorm backward of rows that are not 16-byte aligned: one element at a time. Gradients take
// two passes over a row, the second of which reads the caches as long as the row fits there;
// dweight and dbias a third one. Formulas: layer_norm.h.
#pragma once

#include "norm/layer_norm_backward.cuh"

namespace llmjp::norm {

// One block a row.
template <class X, class R, class W, bool kCentred>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kLoopThreads, 1024 / kLoopThreads)
    layer_norm_backward_loop_kernel(LayerNormBackward p) {
  constexpr int kChunk = 1;
  constexpr int kWarps = kLoopThreads / device::kWarpSize;
  constexpr int kStep = kLoopThreads * kChunk;

  const int64_t row = device::block_index_x();
  const X* dy = static_cast<const X*>(p.dy) + row * p.dy_stride;
  const R* r = static_cast<const R*>(p.r) + row * p.r_stride;
  const R* dr = p.dr == nullptr ? nullptr : static_cast<const R*>(p.dr) + row * p.dr_stride;
  const W* weight = static_cast<const W*>(p.weight);
  const float mean = kCentred ? p.mean[row] : 0.0f;
  const float rstd = p.rstd[row];
  const float inverse_width = 1.0f / static_cast<float>(p.width);
  const int64_t first = int64_t{device::thread_index()} * kChunk;

  // g and x̂ of one chunk.
  const auto load_chunk = [&](int64_t column, float (&g)[kChunk], float (&normalised)[kChunk]) {
    float scale[kChunk];
    device::load_floats(dy + column, g);
    device::load_floats(r + column, normalised);
    device::load_floats(weight + column, scale);
    LLMJP_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      g[i] *= scale[i];
      normalised[i] = (normalised[i] - mean) * rstd;
    }
  };

  float sums[2] = {0.0f, 0.0f};
  for (int64_t column = first; column < p.width; column += kStep) {
    float g[kChunk];
    float normalised[kChunk];
    load_chunk(column, g, normalised);
    LLMJP_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      sums[0] += g[i];
      sums[1] += g[i] * normalised[i];
    }
  }
  device::block_sum<kWarps>(sums, device::dynamic_shared<float>());
  const float mean_g = kCentred ? sums[0] * inverse_width : 0.0f;
  const float mean_g_normalised = sums[1] * inverse_width;

  for (int64_t column = first; column < p.width; column += kStep) {
    float g[kChunk];
    float normalised[kChunk];
    load_chunk(column, g, normalised);
    LLMJP_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      g[i] = rstd * (g[i] - mean_g - normalised[i] * mean_g_normalised);
    }
    if (dr != nullptr) {
      float added[kChunk];
      device::load_floats(dr + column, added);
      LLMJP_UNROLL
      for (int i = 0; i < kChunk; ++i) g[i] += added[i];
    }
    store_gradient<X, R>(p, row, column, g);
  }
}

// The same rows' dweight and dbias: a warp takes 32 · kChunk columns and every groups-th row of
// them.
template <class X, class R, bool kCentred>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kLoopThreads, 1024 / kLoopThreads)
    layer_norm_backward_columns_kernel(LayerNormBackward p, int64_t column_tiles, int64_t groups) {
  constexpr int kChunk = 1;
  constexpr int kWarps = kLoopThreads / device::kWarpSize;
  const int64_t tile = device::block_index_x() % column_tiles;
  const int64_t group = device::block_index_x() / column_tiles * kWarps + device::warp_index();
  const int64_t column = (tile * device::kWarpSize + device::lane_index()) * kChunk;
  if (column >= p.width) return;

  float dweight_sum[kChunk] = {};
  float dbias_sum[kChunk] = {};
  for (int64_t row = group; row < p.rows; row += groups) {
    const float mean = kCentred ? p.mean[row] : 0.0f;
    const float rstd = p.rstd[row];
    float dy[kChunk];
    float row_values[kChunk];
    device::load_floats(static_cast<const X*>(p.dy) + row * p.dy_stride + column, dy);
    device::load_floats(static_cast<const R*>(p.r) + row * p.r_stride + column, row_values);
    LLMJP_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      dweight_sum[i] += dy[i] * ((row_values[i] - mean) * rstd);
      dbias_sum[i] += dy[i];
    }
  }
  float* partial = p.workspace + group * p.width + column;
  LLMJP_UNROLL
  for (int i = 0; i < kChunk; ++i) {
    partial[i] = dweight_sum[i];
    if constexpr (kCentred) partial[groups * p.width + i] = dbias_sum[i];
  }
}

}  // namespace llmjp::norm
