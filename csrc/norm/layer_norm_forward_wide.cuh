// LayerNorm forward of rows wider than any tile. Formulas: layer_norm.h.
//
// A block takes a row and has a multiprocessor to itself, whose memory holds it: the first
// kWideChunks chunks of 16 bytes of each thread in registers, packed as they were loaded, the next
// in shared memory, where every thread reads only what it has itself put there (tiles.h). A row of
// up to 65,536 elements is so read once. What is left of a yet wider one is read again for each
// pass, from the second-level cache where it fits there.
#pragma once

#include "device/schedule.h"
#include "norm/layer_norm_forward.cuh"

namespace llmjp::norm {

// shared_chunks: of each thread, in shared memory behind the scratch of the sums.
template <class X, class R, class W, bool kCentred, bool kDropout>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kWideThreads, 1)
    layer_norm_forward_wide_kernel(LayerNormForward p, int shared_chunks) {
  constexpr int kChunk = RowTypes<X, R>::kChunk;
  constexpr int kWarps = kWideThreads / device::kWarpSize;
  using Chunk = device::Vector<R, kChunk>;

  const int thread = device::thread_index();
  const int64_t row = device::block_index_x();
  const RowSource<X, R, kDropout> source(p, row);
  const bool has_residual = source.residual != nullptr;
  X* y = static_cast<X*>(p.y) + row * p.width;
  R* r = static_cast<R*>(p.r) + row * p.width;
  const int chunks_per_row = static_cast<int>(p.width / kChunk);
  const float inverse_width = 1.0f / static_cast<float>(p.width);
  float* scratch = device::dynamic_shared<float>();  // [2][kWarps]
  Chunk* shared = reinterpret_cast<Chunk*>(scratch + 2 * kWarps) + thread;
  const int first_shared = kWideChunks * kWideThreads + thread;
  const int first_reread = first_shared + shared_chunks * kWideThreads;

  const auto load_chunk = [&](int chunk) {
    const int64_t column = int64_t{chunk} * kChunk;
    const Chunk loaded = source.template chunk<kChunk>(column);
    if (has_residual) device::store(r + column, loaded);
    return loaded;
  };
  // Calls visit(column, values) for each chunk of the row that the thread has.
  Chunk held[kWideChunks];
  const auto for_chunks = [&](auto visit) {
    float values[kChunk];
    LLMJP_UNROLL
    for (int c = 0; c < kWideChunks; ++c) {
      const int chunk = c * kWideThreads + thread;
      if (chunk < chunks_per_row) {
        device::to_floats(held[c], values);
        visit(int64_t{chunk} * kChunk, values);
      }
    }
    const Chunk* place = shared;
    for (int chunk = first_shared; chunk < first_reread && chunk < chunks_per_row;
         chunk += kWideThreads, place += kWideThreads) {
      device::to_floats(device::shared_load<Chunk>(place), values);
      visit(int64_t{chunk} * kChunk, values);
    }
    for (int chunk = first_reread; chunk < chunks_per_row; chunk += kWideThreads) {
      const int64_t column = int64_t{chunk} * kChunk;
      if (has_residual) {  // r, which the thread has itself written
        device::load_floats(r + column, values);
      } else {
        device::load_floats(source.x + column, values);
      }
      visit(column, values);
    }
  };

  int thread_here = thread;
  LLMJP_UNROLL
  for (int c = 0; c < kWideChunks; ++c) {
    // Four chunks' loads together, lest all of them and the drawing of numbers share the registers.
    if (kDropout && c % 4 == 0) thread_here = device::not_before(thread_here);
    const int chunk = c * kWideThreads + thread_here;
    if (chunk < chunks_per_row) held[c] = source.template chunk<kChunk>(int64_t{chunk} * kChunk);
  }
  Chunk* place = shared;
  for (int chunk = first_shared; chunk < first_reread && chunk < chunks_per_row;
       chunk += kWideThreads, place += kWideThreads) {
    device::shared_store(place, load_chunk(chunk));
  }
  for (int chunk = first_reread; has_residual && chunk < chunks_per_row; chunk += kWideThreads) {
    load_chunk(chunk);
  }
  if (has_residual) {
    LLMJP_UNROLL
    for (int c = 0; c < kWideChunks; ++c) {
      const int chunk = c * kWideThreads + thread;
      if (chunk < chunks_per_row) device::store(r + int64_t{chunk} * kChunk, held[c]);
    }
  }

  float mean = 0.0f;
  if constexpr (kCentred) {
    float sum[1] = {0.0f};
    for_chunks([&](int64_t, const float (&values)[kChunk]) {
      LLMJP_UNROLL
      for (int i = 0; i < kChunk; ++i) sum[0] += values[i];
    });
    device::block_sum<kWarps>(sum, scratch);
    mean = sum[0] * inverse_width;
  }
  float squares[1] = {0.0f};
  for_chunks([&](int64_t, const float (&values)[kChunk]) {
    LLMJP_UNROLL
    for (int i = 0; i < kChunk; ++i) squares[0] += (values[i] - mean) * (values[i] - mean);
  });
  device::block_sum<kWarps>(squares, scratch + kWarps);
  const float rstd = device::reciprocal_sqrt(squares[0] * inverse_width + p.eps);

  if (thread == 0) {
    if constexpr (kCentred) p.mean[row] = mean;
    p.rstd[row] = rstd;
  }
  const W* weight = static_cast<const W*>(p.weight);
  const W* bias = static_cast<const W*>(p.bias);
  for_chunks([&](int64_t column, float (&values)[kChunk]) {
    store_normalised(y + column, weight + column, bias == nullptr ? nullptr : bias + column, values,
                     mean, rstd);
  });
}

}  // namespace llmjp::norm
