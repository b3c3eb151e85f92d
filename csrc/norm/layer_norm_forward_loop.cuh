// LayerNorm forward of rows that are not 16-byte aligned: one element at a time, the row read three
// times, of which only the first comes from memory as long as the row fits the caches. Formulas:
// layer_norm.h.
#pragma once

#include "norm/layer_norm_forward.cuh"

namespace llmjp::norm {

template <class X, class R, class W, bool kCentred, bool kDropout>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kLoopThreads, 1024 / kLoopThreads)
    layer_norm_forward_loop_kernel(LayerNormForward p) {
  constexpr int kChunk = 1;
  constexpr int kWarps = kLoopThreads / device::kWarpSize;
  constexpr int kStep = kLoopThreads * kChunk;

  const int64_t row = device::block_index_x();
  const RowSource<X, R, kDropout> source(p, row);
  const W* weight = static_cast<const W*>(p.weight);
  const W* bias = static_cast<const W*>(p.bias);
  X* y = static_cast<X*>(p.y) + row * p.width;
  R* r = static_cast<R*>(p.r) + row * p.width;
  const int64_t first = int64_t{device::thread_index()} * kChunk;
  const float inverse_width = 1.0f / static_cast<float>(p.width);
  float* scratch = device::dynamic_shared<float>();  // [2][kWarps]

  // A thread reads back only what it has itself written to r.
  const auto load_again = [&](int64_t column, float (&values)[kChunk]) {
    if (source.residual != nullptr) {
      device::load_floats(r + column, values);
    } else {
      device::load_floats(source.x + column, values);
    }
  };

  float sum[1] = {0.0f};
  float squares[1] = {0.0f};
  for (int64_t column = first; column < p.width; column += kStep) {
    const auto chunk = source.template chunk<kChunk>(column);
    if (source.residual != nullptr) device::store(r + column, chunk);
    float values[kChunk];
    device::to_floats(chunk, values);
    LLMJP_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      if constexpr (kCentred) {
        sum[0] += values[i];
      } else {
        squares[0] += values[i] * values[i];
      }
    }
  }
  float mean = 0.0f;
  if constexpr (kCentred) {
    device::block_sum<kWarps>(sum, scratch);
    mean = sum[0] * inverse_width;
    for (int64_t column = first; column < p.width; column += kStep) {
      float values[kChunk];
      load_again(column, values);
      LLMJP_UNROLL
      for (int i = 0; i < kChunk; ++i) squares[0] += (values[i] - mean) * (values[i] - mean);
    }
  }
  device::block_sum<kWarps>(squares, scratch + kWarps);
  const float rstd = device::reciprocal_sqrt(squares[0] * inverse_width + p.eps);

  if (device::thread_index() == 0) {
    if constexpr (kCentred) p.mean[row] = mean;
    p.rstd[row] = rstd;
  }
  for (int64_t column = first; column < p.width; column += kStep) {
    float values[kChunk];
    load_again(column, values);
    store_normalised(y + column, weight + column, bias == nullptr ? nullptr : bias + column, values,
                     mean, rstd);
  }
}

}  // namespace llmjp::norm
