// LayerNorm backward kernels. Formulas: layer_norm.h.
//
// Bytes: dy and r (and dr) are read once, dr_sum (and, with dropout, dx) written once: 12 KB for a
// row of 2,048 bf16. dweight
// and dbias are sums over rows. Instead of atomics, which would make the result depend on timing,
// every group of warps that walks over rows keeps its own sums in registers, writes them to a
// workspace once, and a second kernel adds the groups in a fixed order: a few percent of the bytes,
// a fifth for 8,192 rows of 2,048, mostly within the second-level cache (docs/kernels.md).
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
#include "device/store_row.h"
#include "device/vector.h"
#include "norm/layer_norm.h"
#include "norm/layer_norm_forward.cuh"
#include "norm/row_share.cuh"
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
  device::store_rounded(static_cast<X*>(p.dx) + place, values);
}

template <class X, class R, class W, bool kCentred, class RowTile, class Share>
LLMJP_DEVICE void walk_over_rows(const LayerNormBackward& p, int stages, const Share& share) {
  using device::Vector;
  using Shared = BackwardShared<X, R, RowTile>;
  constexpr int kChunk = RowTypes<X, R>::kChunk;
  constexpr int kChunks = RowTile::kElements / kChunk;
  constexpr int kWarps = RowTile::kWarpsPerRow;
  constexpr int kRows = RowTile::kRowsPerBlock;

  const int thread = kWarps == 1 ? device::lane_index() : device::thread_index();
  const int row_of_block = kWarps == 1 ? device::warp_index() : 0;
  const float inverse_width = 1.0f / static_cast<float>(p.width);
  const W* weight = static_cast<const W*>(p.weight) + share.first_column();
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
      const X* dy = static_cast<const X*>(p.dy) + row * p.dy_stride + share.first_column();
      const R* r = static_cast<const R*>(p.r) + row * p.r_stride + share.first_column();
      const R* dr = static_cast<const R*>(p.dr) + row * p.dr_stride + share.first_column();
      LLMJP_UNROLL
      for (int c = 0; c < kChunks; ++c) {
        const int chunk = c * RowTile::kThreadsPerRow + thread;
        if (chunk < share.chunks) {
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

  copy_row(share.group, 0);
  int step = 0;
  for (int64_t row = share.group; row < p.rows; row += share.groups, ++step) {
    const int stage = step % stages;
    const float mean = kCentred ? p.mean[row] : 0.0f;
    const float rstd = p.rstd[row];
    if (stages == 2) {
      copy_row(row + share.groups, 1 - stage);
      device::cp_async_wait_group<1>();
    } else {
      device::cp_async_wait_group<0>();
    }

    // Σ g and Σ g · x̂, and this row's share of dweight and dbias.
    float sums[2] = {0.0f, 0.0f};
    LLMJP_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      const int chunk = c * RowTile::kThreadsPerRow + thread;
      if (chunk < share.chunks) {
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
    share.total(sums, step);
    const float mean_g = kCentred ? sums[0] * inverse_width : 0.0f;
    const float mean_g_normalised = sums[1] * inverse_width;

    LLMJP_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      const int chunk = c * RowTile::kThreadsPerRow + thread;
      if (chunk < share.chunks) {
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
        store_gradient<X, R>(p, row, share.first_column() + chunk * kChunk, result);
      }
    }
    if (stages == 1) copy_row(row + share.groups, 0);
  }

  // workspace [2][groups][width]: dweight's partial sums, then, where centred, dbias's.
  float* dweight_partial = p.workspace + share.group * p.width + share.first_column();
  float* dbias_partial = dweight_partial + share.groups * p.width;
  constexpr int kPiece = kChunk < 4 ? kChunk : 4;
  LLMJP_UNROLL
  for (int c = 0; c < kChunks; ++c) {
    const int chunk = c * RowTile::kThreadsPerRow + thread;
    if (chunk < share.chunks) {
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

template <class X, class R, class W, bool kCentred, class RowTile>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(RowTile::kThreads, kBackwardBlocks<RowTile>)
    layer_norm_backward_tile_kernel(LayerNormBackward p, int stages) {
  constexpr int kRows = RowTile::kRowsPerBlock;
  const int row_of_block = RowTile::kWarpsPerRow == 1 ? device::warp_index() : 0;
  WholeRows share;
  share.group = int64_t{device::block_index_x()} * kRows + row_of_block;
  share.groups = int64_t{device::block_count_x()} * kRows;
  share.chunks = static_cast<int>(p.width / RowTypes<X, R>::kChunk);
  walk_over_rows<X, R, W, kCentred, RowTile>(p, stages, share);
}

// Rows wider than the tiles: `parts` blocks share one, each in a tile of its own.
template <class X, class R, class W, bool kCentred, class RowTile>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(RowTile::kThreads, kBackwardBlocks<RowTile>)
    layer_norm_backward_parts_kernel(LayerNormBackward p, int stages, int parts) {
  constexpr int kChunk = RowTypes<X, R>::kChunk;
  const int chunks = static_cast<int>(p.width / kChunk);
  const int chunks_of_part = (chunks + parts - 1) / parts;
  RowPart share;
  share.parts = parts;
  share.part = device::block_index_x() % parts;
  share.group = device::block_index_x() / parts;
  share.groups = device::block_count_x() / parts;
  share.column = int64_t{share.part} * chunks_of_part * kChunk;
  share.chunks = chunks - share.part * chunks_of_part < chunks_of_part
                     ? chunks - share.part * chunks_of_part
                     : chunks_of_part;
  float* slots = p.workspace + share.groups * p.width * (kCentred ? 2 : 1);
  share.slots = slots + share.group * 4 * parts;
  share.arrived = reinterpret_cast<int*>(slots + share.groups * 4 * parts) + share.group;
  walk_over_rows<X, R, W, kCentred, RowTile>(p, stages, share);
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
