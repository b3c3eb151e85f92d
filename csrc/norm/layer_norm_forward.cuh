// LayerNorm forward kernels. Formulas: layer_norm.h.
//
// Bytes: x (and residual) are read once, y (and r) written once; mean, rstd, weight and bias are
// small or cached. A row of 2,048 bf16 moves 8 KB, 16 with the residual. Everything else hides
// behind that.
//
// The tile kernel holds a row in registers, packed as it was loaded. Chunk c of a thread is the 16
// bytes number c · kThreadsPerRow + thread of the row, so that a warp reads 512 consecutive bytes.
// The variance is summed from centred values in a second pass over the registers: Σx² − (Σx)² would
// cancel. RMSNorm (kCentred false) has no first pass.
//
// The looping kernel serves rows that no tile holds or that are not 16-byte aligned. It reads the
// row three times, of which only the first comes from memory as long as the row fits the caches.
#pragma once

#include "device/dropout.h"
#include "device/math.h"
#include "device/reduce.h"
#include "device/vector.h"
#include "norm/layer_norm.h"
#include "norm/tiles.h"

namespace llmjp::norm {

template <class X, class R>
struct RowTypes {
  static_assert(sizeof(R) >= sizeof(X), "a row is kept at least as precise as its input");
  static constexpr int kChunk = 16 / sizeof(R);  // elements: 16 bytes of the wider type
};

// Without dropout nothing is read of its state.
template <bool kDropout>
struct RowDropout {
  LLMJP_DEVICE RowDropout(const LayerNormForward&, int64_t) {}
  template <int kChunk>
  LLMJP_DEVICE void apply(int64_t, float (&)[kChunk]) const {}
};

template <>
struct RowDropout<true> {
  device::Dropout dropout;
  int64_t position;  // of the row

  LLMJP_DEVICE RowDropout(const LayerNormForward& p, int64_t row)
      : dropout(p.random, p.dropout), position(device::Dropout::row_position(row, p.width)) {}
  template <int kChunk>
  LLMJP_DEVICE void apply(int64_t column, float (&values)[kChunk]) const {
    dropout.apply(position, column, values);
  }
};

// Where a row's chunks come from: x, or r = dropout(x) + residual, rounded to the row's type, which
// is what forward normalises and backward reads.
template <class X, class R, bool kDropout>
struct RowSource {
  const X* x;
  const R* residual;  // or null
  RowDropout<kDropout> dropout;

  LLMJP_DEVICE RowSource(const LayerNormForward& p, int64_t row)
      : x(static_cast<const X*>(p.x) + row * p.x_stride),
        residual(p.residual == nullptr
                     ? nullptr
                     : static_cast<const R*>(p.residual) + row * p.residual_stride),
        dropout(p, row) {}

  template <int kChunk>
  LLMJP_DEVICE device::Vector<R, kChunk> chunk(int64_t column) const {
    using device::Vector;
    const auto x_chunk = device::load_once<Vector<X, kChunk>>(x + column);
    if constexpr (std::is_same_v<X, R> && !kDropout) {
      if (residual == nullptr) return x_chunk;
    }
    float values[kChunk];
    device::to_floats(x_chunk, values);
    dropout.apply(column, values);
    if (residual != nullptr) {
      float added[kChunk];
      device::to_floats(device::load_once<Vector<R, kChunk>>(residual + column), added);
      LLMJP_UNROLL
      for (int i = 0; i < kChunk; ++i) values[i] += added[i];
    }
    return device::from_floats<R>(values);
  }
};

template <int kChunk, class X, class W>
LLMJP_DEVICE void store_normalised(X* y, const W* weight, const W* bias, float (&values)[kChunk],
                                   float mean, float rstd) {
  float scale[kChunk];
  device::load_floats(weight, scale);
  LLMJP_UNROLL
  for (int i = 0; i < kChunk; ++i) values[i] = (values[i] - mean) * rstd * scale[i];
  if (bias != nullptr) {
    float shift[kChunk];
    device::load_floats(bias, shift);
    LLMJP_UNROLL
    for (int i = 0; i < kChunk; ++i) values[i] += shift[i];
  }
  device::store(y, device::from_floats<X>(values));
}

template <class X, class R, class W, bool kCentred, bool kDropout, class RowTile>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(RowTile::kThreads, kForwardBlocks<RowTile>)
    layer_norm_forward_tile_kernel(LayerNormForward p) {
  constexpr int kChunk = RowTypes<X, R>::kChunk;
  constexpr int kChunks = RowTile::kElements / kChunk;
  constexpr int kWarps = RowTile::kWarpsPerRow;

  const int thread = kWarps == 1 ? device::lane_index() : device::thread_index();
  const int row_of_block = kWarps == 1 ? device::warp_index() : 0;
  const int64_t row = int64_t{device::block_index_x()} * RowTile::kRowsPerBlock + row_of_block;
  if (row >= p.rows)
    return;  // whole warps, and only where a row has a warp to itself: no barrier is missed

  const RowSource<X, R, kDropout> source(p, row);
  const W* weight = static_cast<const W*>(p.weight);
  const W* bias = static_cast<const W*>(p.bias);
  X* y = static_cast<X*>(p.y) + row * p.width;
  R* r = static_cast<R*>(p.r) + row * p.width;
  const int chunks_per_row = static_cast<int>(p.width / kChunk);
  const float inverse_width = 1.0f / static_cast<float>(p.width);
  float* scratch = device::dynamic_shared<float>();  // [2][kWarps]

  device::Vector<R, kChunk> held[kChunks];
  LLMJP_UNROLL
  for (int c = 0; c < kChunks; ++c) {
    const int chunk = c * RowTile::kThreadsPerRow + thread;
    if (chunk < chunks_per_row) {
      held[c] = source.template chunk<kChunk>(chunk * kChunk);
    }
  }

  float sum[1] = {0.0f};
  LLMJP_UNROLL
  for (int c = 0; c < kChunks; ++c) {
    const int chunk = c * RowTile::kThreadsPerRow + thread;
    if (chunk < chunks_per_row) {
      if (source.residual != nullptr) device::store(r + chunk * kChunk, held[c]);
      if constexpr (kCentred) {
        float values[kChunk];
        device::to_floats(held[c], values);
        LLMJP_UNROLL
        for (int i = 0; i < kChunk; ++i) sum[0] += values[i];
      }
    }
  }
  if constexpr (kCentred) device::block_sum<kWarps>(sum, scratch);
  const float mean = kCentred ? sum[0] * inverse_width : 0.0f;

  float squares[1] = {0.0f};
  LLMJP_UNROLL
  for (int c = 0; c < kChunks; ++c) {
    if (c * RowTile::kThreadsPerRow + thread < chunks_per_row) {
      float values[kChunk];
      device::to_floats(held[c], values);
      LLMJP_UNROLL
      for (int i = 0; i < kChunk; ++i) squares[0] += (values[i] - mean) * (values[i] - mean);
    }
  }
  device::block_sum<kWarps>(squares, scratch + kWarps);
  const float rstd = device::reciprocal_sqrt(squares[0] * inverse_width + p.eps);

  if (thread == 0) {
    if constexpr (kCentred) p.mean[row] = mean;
    p.rstd[row] = rstd;
  }
  LLMJP_UNROLL
  for (int c = 0; c < kChunks; ++c) {
    const int chunk = c * RowTile::kThreadsPerRow + thread;
    if (chunk < chunks_per_row) {
      const int column = chunk * kChunk;
      float values[kChunk];
      device::to_floats(held[c], values);
      store_normalised(y + column, weight + column, bias == nullptr ? nullptr : bias + column,
                       values, mean, rstd);
    }
  }
}

}  // namespace llmjp::norm
