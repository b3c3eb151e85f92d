// LayerNorm backward kernels. Formulas: layer_norm.h.
//
// Bytes: dy and r (and dr) are read once, dr_sum (and, with dropout, dx) written once: 12 KB for a
// row of 2,048 bf16. dweight
// and dbias are sums over rows. Instead of atomics, which would make the result depend on timing,
// every group of warps that walks over rows keeps its own sums in registers, writes them to a
// workspace once, and a second kernel adds the groups in a fixed order: with some 500 groups that
// is a few percent of the bytes, mostly within the second-level cache.
//
// The tile kernel is persistent: a group takes rows group, group + groups, … While one row is
// reduced the next is on its way into shared memory by cp.async. Every thread reads only the bytes
// that it copied itself, so the copies need no barrier, and chunk c of thread t lies at [c][t]: 16
// bytes apart, free of bank conflicts.
#pragma once

#include "device/cp_async.h"
#include "device/dropout.h"
#include "device/group_sum.h"
#include "device/reduce.h"
#include "device/vector.h"
#include "norm/layer_norm.h"
#include "norm/layer_norm_forward.cuh"
#include "norm/tiles.h"

namespace llmjp::norm {

// Where the pieces of a backward tile's shared memory lie, in bytes: scratch for two block sums of
// two values, then per stage and row of the block the chunks of dy, r and, where there is one, dr.
template <class X, class R, class RowTile>
struct BackwardShared {
  static constexpr int kScratch = (2 * 2 * 4 * RowTile::kWarpsPerRow + 15) / 16 * 16;
  static constexpr int kDy = static_cast<int>(RowTile::kWidth * sizeof(X));
  static constexpr int kR = static_cast<int>(RowTile::kWidth * sizeof(R));

  static constexpr int64_t bytes_per_element(bool has_dr) {
    return sizeof(X) + sizeof(R) * (has_dr ? 2 : 1);
  }
};

// A chunk of dr_sum, and of dx where that differs.
template <class X, class R, int kChunk>
LLMJP_DEVICE void store_gradient(const LayerNormBackward& p, int64_t row, int64_t column,
                                 float (&values)[kChunk]) {
  const int64_t place = row * p.width + column;
  device::store(static_cast<R*>(p.dr_sum) + place, device::from_floats<R>(values));
  if (p.random == nullptr) return;
  device::Dropout(p.random, p.dropout)
      .apply(device::Dropout::row_position(row, p.width), column, values);
  device::store(static_cast<X*>(p.dx) + place, device::from_floats<X>(values));
}

template <class X, class R, class W, bool kCentred, class RowTile>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(RowTile::kThreads, kBackwardBlocks<RowTile>)
    layer_norm_backward_tile_kernel(LayerNormBackward p, int stages) {
  using device::Vector;
  using Shared = BackwardShared<X, R, RowTile>;
  constexpr int kChunk = RowTypes<X, R>::kChunk;
  constexpr int kChunks = RowTile::kElements / kChunk;
  constexpr int kWarps = RowTile::kWarpsPerRow;
  constexpr int kRows = RowTile::kRowsPerBlock;

  const int thread = kWarps == 1 ? device::lane_index() : device::thread_index();
  const int row_of_block = kWarps == 1 ? device::warp_index() : 0;
  const int64_t groups = int64_t{device::block_count_x()} * kRows;
  const int64_t group = int64_t{device::block_index_x()} * kRows + row_of_block;
  const int chunks_per_row = static_cast<int>(p.width / kChunk);
  const float inverse_width = 1.0f / static_cast<float>(p.width);
  const W* weight = static_cast<const W*>(p.weight);
  const bool has_dr = p.dr != nullptr;

  char* shared = device::dynamic_shared<char>();
  float* scratch = reinterpret_cast<float*>(shared);  // [2][2][kWarps]
  const int row_bytes = Shared::kDy + Shared::kR * (has_dr ? 2 : 1);
  const auto staged_dy = [&](int stage, int c) {
    char* row_smem = shared + Shared::kScratch + (stage * kRows + row_of_block) * row_bytes;
    return reinterpret_cast<X*>(row_smem) + (c * RowTile::kThreadsPerRow + thread) * kChunk;
  };
  const auto staged_r = [&](int stage, int c) {
    char* row_smem = shared + Shared::kScratch + (stage * kRows + row_of_block) * row_bytes;
    return reinterpret_cast<R*>(row_smem + Shared::kDy) +
           (c * RowTile::kThreadsPerRow + thread) * kChunk;
  };
  const auto staged_dr = [&](int stage, int c) {
    return reinterpret_cast<R*>(reinterpret_cast<char*>(staged_r(stage, c)) + Shared::kR);
  };

  // Starts the copies of one row; rows past the end copy nothing, and the empty group keeps the
  // count of groups the same.
  const auto copy_row = [&](int64_t row, int stage) {
    if (row < p.rows) {
      const X* dy = static_cast<const X*>(p.dy) + row * p.dy_stride;
      const R* r = static_cast<const R*>(p.r) + row * p.r_stride;
      const R* dr = static_cast<const R*>(p.dr) + row * p.dr_stride;
      LLMJP_UNROLL
      for (int c = 0; c < kChunks; ++c) {
        const int chunk = c * RowTile::kThreadsPerRow + thread;
        if (chunk < chunks_per_row) {
          device::cp_async<kChunk * sizeof(X)>(staged_dy(stage, c), dy + chunk * kChunk);
          device::cp_async<kChunk * sizeof(R)>(staged_r(stage, c), r + chunk * kChunk);
          if (has_dr)
            device::cp_async<kChunk * sizeof(R)>(staged_dr(stage, c), dr + chunk * kChunk);
        }
      }
    }
    device::cp_async_commit_group();
  };

  float dweight_sum[kChunks][kChunk] = {};
  float dbias_sum[kChunks][kChunk] = {};

  copy_row(group, 0);
  int step = 0;
  for (int64_t row = group; row < p.rows; row += groups, ++step) {
    const int stage = step % stages;
    const float mean = kCentred ? p.mean[row] : 0.0f;
    const float rstd = p.rstd[row];
    if (stages == 2) {
      copy_row(row + groups, 1 - stage);
      device::cp_async_wait_group<1>();
    } else {
      device::cp_async_wait_group<0>();
    }

    // Σ g and Σ g · x̂, and this row's share of dweight and dbias.
    float sums[2] = {0.0f, 0.0f};
    LLMJP_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      const int chunk = c * RowTile::kThreadsPerRow + thread;
      if (chunk < chunks_per_row) {
        float dy[kChunk];
        float row_values[kChunk];
        float scale[kChunk];
        device::to_floats(device::shared_load<Vector<X, kChunk>>(staged_dy(stage, c)), dy);
        device::to_floats(device::shared_load<Vector<R, kChunk>>(staged_r(stage, c)), row_values);
        device::load_floats(weight + chunk * kChunk, scale);
        LLMJP_UNROLL
        for (int i = 0; i < kChunk; ++i) {
          const float normalised = (row_values[i] - mean) * rstd;
          const float g = dy[i] * scale[i];
          sums[0] += g;
          sums[1] += g * normalised;
          dweight_sum[c][i] += dy[i] * normalised;
          if constexpr (kCentred) dbias_sum[c][i] += dy[i];
        }
      }
    }
    // Two scratch areas in turn: a slow warp may still read the last row's sums.
    device::block_sum<kWarps>(sums, scratch + (step % 2) * 2 * kWarps);
    const float mean_g = kCentred ? sums[0] * inverse_width : 0.0f;
    const float mean_g_normalised = sums[1] * inverse_width;

    LLMJP_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      const int chunk = c * RowTile::kThreadsPerRow + thread;
      if (chunk < chunks_per_row) {
        float dy[kChunk];
        float row_values[kChunk];
        float scale[kChunk];
        device::to_floats(device::shared_load<Vector<X, kChunk>>(staged_dy(stage, c)), dy);
        device::to_floats(device::shared_load<Vector<R, kChunk>>(staged_r(stage, c)), row_values);
        device::load_floats(weight + chunk * kChunk, scale);
        float result[kChunk];
        LLMJP_UNROLL
        for (int i = 0; i < kChunk; ++i) {
          const float normalised = (row_values[i] - mean) * rstd;
          result[i] = rstd * (dy[i] * scale[i] - mean_g - normalised * mean_g_normalised);
        }
        if (has_dr) {
          float dr[kChunk];
          device::to_floats(device::shared_load<Vector<R, kChunk>>(staged_dr(stage, c)), dr);
          LLMJP_UNROLL
          for (int i = 0; i < kChunk; ++i) result[i] += dr[i];
        }
        store_gradient<X, R>(p, row, chunk * kChunk, result);
      }
    }
    if (stages == 1) copy_row(row + groups, 0);
  }

  // workspace [2][groups][width]: dweight's partial sums, then, where centred, dbias's.
  float* dweight_partial = p.workspace + group * p.width;
  float* dbias_partial = dweight_partial + groups * p.width;
  constexpr int kPiece = kChunk < 4 ? kChunk : 4;
  LLMJP_UNROLL
  for (int c = 0; c < kChunks; ++c) {
    const int chunk = c * RowTile::kThreadsPerRow + thread;
    if (chunk < chunks_per_row) {
      LLMJP_UNROLL
      for (int first = 0; first < kChunk; first += kPiece) {
        Vector<float, kPiece> dweight_piece;
        Vector<float, kPiece> dbias_piece;
        LLMJP_UNROLL
        for (int i = 0; i < kPiece; ++i) {
          dweight_piece.elements[i] = dweight_sum[c][first + i];
          dbias_piece.elements[i] = dbias_sum[c][first + i];
        }
        device::store(dweight_partial + chunk * kChunk + first, dweight_piece);
        if constexpr (kCentred) device::store(dbias_partial + chunk * kChunk + first, dbias_piece);
      }
    }
  }
}

// Gradients of rows that no tile holds or that are not 16-byte aligned: one block a row, read
// twice.
template <class X, class R, class W, bool kCentred, int kChunk>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kLoopThreads, 1024 / kLoopThreads)
    layer_norm_backward_loop_kernel(LayerNormBackward p) {
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
template <class X, class R, bool kCentred, int kChunk>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kLoopThreads, 1024 / kLoopThreads)
    layer_norm_backward_columns_kernel(LayerNormBackward p, int64_t column_tiles, int64_t groups) {
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

// dweight (blocks of the first half of the grid) and dbias (the second): 32 columns a block.
template <class W>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(device::kGroupSumThreads, 1)
    layer_norm_backward_group_sum_kernel(LayerNormBackward p, int64_t groups) {
  const int64_t column_tiles = (p.width + device::kWarpSize - 1) / device::kWarpSize;
  const int64_t tile = device::block_index_x() % column_tiles;
  const bool is_bias = device::block_index_x() >= column_tiles;
  device::group_sum(p.workspace + (is_bias ? groups * p.width : 0), groups, p.width,
                    tile * device::kWarpSize, static_cast<W*>(is_bias ? p.dbias : p.dweight),
                    device::dynamic_shared<float>());
}

}  // namespace llmjp::norm
