// The main kernel of attention's backward pass. Formulas: attention.h; tiles and their reasons:
// backward_tiles.h. Before and after it run the kernels of attention_backward_rows.cuh.
//
// A block keeps a tile of keys and walks over the queries that see them, in every head of the group
// that shares the keys, so that dk and dv stay in registers and are written once. The scores are
// computed transposed, keys by queries, which makes a warp own its keys: P and dsᵀ, rounded to 16
// bits, are operands of dv += P · dout and dk += dsᵀ · q as they lie. Only ds crosses warps,
// through shared memory, for dq = ds · k, which all blocks of a head add up in global memory.
//
// Operations: 10 · head_dim for each query and key that are not masked. Bytes: k, v, dk and dv once
// from memory; q, dout and (4 bytes an element) dq once from the second-level cache for every block
// of keys.
#pragma once

#include "attention/attention.h"
#include "attention/backward_tiles.h"
#include "attention/backward_workspace.cuh"
#include "attention/gradients.cuh"
#include "attention/products.cuh"
#include "attention/scores.cuh"
#include "attention/sequences.cuh"
#include "attention/tile_copy.cuh"
#include "device/atomic.h"
#include "device/cp_async.h"
#include "device/schedule.h"
#include "device/shared.h"
#include "device/tile.h"
#include "device/vector.h"

namespace llmjp::attention {

// The blocks of a head add to a tile of dq in the order of their keys, each warp to its own piece
// of it, where the sum must not depend on timing. Blocks take their keys in the order in which they
// start, so that who is waited for has started before.
//
// A warp says that its part is added only when it has computed the next scores: waiting at once for
// its additions to arrive would take as long as a product.
class Turn {
 public:
  LLMJP_DEVICE void wait(int* turn, int number) {
    // Not ==: should sequences overlap, others' turns count too, and nobody may wait for ever.
    device::spin_wait([&] { return device::load_acquire(turn) >= number; });
    taken_ = turn;
  }

  LLMJP_DEVICE void hand_on() {
    if (taken_ == nullptr) return;
    device::sync_warp();  // the release is of the other lanes' additions too
    if (device::lane_index() == 0) device::add_release(taken_, 1);
    taken_ = nullptr;
  }

 private:
  int* taken_ = nullptr;
};

// The number of this block among all that have started. `scratch` is shared memory for an int.
LLMJP_DEVICE int draw_number(int* started, int* scratch) {
  if (device::thread_index() == 0) {
    device::shared_store(scratch, device::atomic_add(started, 1));
  }
  device::sync_threads();
  const int number = device::shared_load<int>(scratch);
  device::sync_threads();
  return number;
}

// Writes a warp's accumulators, times `factor`, into its rows and columns of a tile.
template <class T, int kAtoms, int kTiles, class Tile>
LLMJP_DEVICE void store_accumulators(const Tile& tile, const float (&values)[kAtoms][kTiles][4],
                                     float factor, int first_row, int first_chunk) {
  const int lane = device::lane_index_here();
  LLMJP_UNROLL
  for (int atom = 0; atom < kAtoms; ++atom) {
    LLMJP_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + atom * 16 + half * 8 + lane / 4;
      LLMJP_UNROLL
      for (int column = 0; column < kTiles; ++column) {
        const float (&pair)[4] = values[atom][column];
        device::shared_store(tile.at(row, first_chunk + column) + lane % 4 * 2,
                             device::pack<T>(pair[half * 2] * factor, pair[half * 2 + 1] * factor));
      }
    }
  }
}

// Writes a warp's part of dk or dv, [keys, head_dim] in rows of `row_stride`, by way of a tile, in
// pieces of 16 bytes.
template <class T, int kAtoms, int kTiles, class Tile>
LLMJP_DEVICE void store_gradient(T* gradient, int64_t row_stride, int rows, int head_dim,
                                 const float (&values)[kAtoms][kTiles][4], float factor,
                                 const Tile& staging, int first_row, int first_chunk) {
  using Piece = device::Vector<T, Tile::kChunkElements>;
  constexpr int kRowsPerPass = device::kWarpSize / kTiles;
  store_accumulators<T>(staging, values, factor, first_row, first_chunk);
  device::sync_warp();
  const int chunk = first_chunk + device::lane_index() % kTiles;
  if (chunk * Tile::kChunkElements >= head_dim) return;
  LLMJP_UNROLL
  for (int pass = 0; pass < kAtoms * 16 / kRowsPerPass; ++pass) {
    const int row = first_row + pass * kRowsPerPass + device::lane_index() / kTiles;
    if (row < rows) {
      device::store(gradient + row * row_stride + chunk * Tile::kChunkElements,
                    device::shared_load<Piece>(staging.at(row, chunk)));
    }
  }
}

// Adds a warp's part of dq, 32 queries from `first_row` on, to the sums of a tile.
template <int kHeadDim, int kTiles>
LLMJP_DEVICE void add_sums(float* sums, const float (&dq)[2][kTiles][4], int first_row,
                           int first_chunk) {
  float* const first =
      sums + (first_row / 16 * (kHeadDim / 8) + first_chunk) * 128 + device::lane_index_here();
  LLMJP_UNROLL
  for (int atom = 0; atom < 2; ++atom) {
    LLMJP_UNROLL
    for (int column = 0; column < kTiles; ++column) {
      LLMJP_UNROLL
      for (int r = 0; r < 4; ++r) {
        device::atomic_add(first + (atom * (kHeadDim / 8) + column) * 128 + r * 32,
                           dq[atom][column][r]);
      }
    }
  }
}

template <class T, class Tile, bool kGeneral, class Order>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(Tile::kThreads, Tile::kBlocks)
    attention_backward_kernel(AttentionBackward p, Order order, BackwardSteps steps) {
  constexpr int kAtoms = Tile::kKeysPerWarp / 16;
  constexpr int kScoreTiles = Tile::kChunk / 8;
  constexpr int kSumTiles = Tile::kColumnsPerWarp / 8;
  constexpr int kStageElements = 2 * Tile::kQueries * Tile::kHeadDim;
  using KTile = device::SwizzledTile<T, Tile::kKeys, Tile::kHeadDim>;
  using QTile = device::SwizzledTile<T, Tile::kQueries, Tile::kHeadDim>;
  using ChunkTile = device::SwizzledTile<T, Tile::kChunk, Tile::kHeadDim>;
  using ScoreTile = device::SwizzledTile<T, Tile::kKeys, Tile::kQueries>;
  T* shared = device::dynamic_shared<T>();
  const KTile k_tile{shared};
  const KTile v_tile{k_tile.base + Tile::kKeys * Tile::kHeadDim};
  const ScoreTile ds_tile{v_tile.base + Tile::kKeys * Tile::kHeadDim};
  const ScoreTile p_tile{ds_tile.base + (Tile::kSharesP ? Tile::kKeys * Tile::kQueries : 0)};
  T* const stages = p_tile.base + Tile::kKeys * Tile::kQueries;
  float* const statistics = reinterpret_cast<float*>(stages + Tile::kStages * kStageElements);

  const int number = p.deterministic ? draw_number(reinterpret_cast<int*>(p.workspace) +
                                                       BackwardScratch<Tile::kHeadDim>::kStarted,
                                                   reinterpret_cast<int*>(statistics))
                                     : device::block_index_x();
  constexpr bool kPacked = kIsPacked<Order>;
  const BlockPlace place = block_place(order, p.kv_heads, number);
  if (place.row_block < 0) return;
  const HeadPlace<kPacked> at(place.head, p.kv_heads);
  const int kv_head = at.head;
  const auto sequence = sequence_at<kPacked>(p, at.sequence);
  const int key_block = (sequence.keys + Tile::kKeys - 1) / Tile::kKeys - 1 - place.row_block;

  // The queries that see a key of the block.
  const int block_key = key_block * Tile::kKeys;
  const KeyRange range = key_range(p, sequence);
  const int begin_key = block_key > range.first ? block_key : range.first;
  const int end_key = block_key + Tile::kKeys < range.last ? block_key + Tile::kKeys : range.last;
  int first_tile = 0, end_tile = 0;
  if (begin_key < end_key) {
    const int begin_query = range.first_query(begin_key);
    const int end_query = range.end_query(end_key - 1, sequence.tokens);
    if (begin_query < end_query) {
      first_tile = begin_query / Tile::kQueries;
      end_tile = (end_query + Tile::kQueries - 1) / Tile::kQueries;
    }
  }

  // Read again where it is needed: the loop has no registers for it.
  const auto sequence_here = [&] {
    return sequence_at<kPacked>(p, kPacked ? device::not_before(at.sequence) : at.sequence);
  };
  const auto record_of = [&](const auto& sequence, int head, int tile) {
    return backward_record<Tile::kHeadDim>(p.workspace, first_record(p, sequence, head) + tile);
  };
  const auto copy_queries = [&](int head, int tile, int stage) {
    const auto sequence = sequence_here();
    const T* q = sequence.template queries<T>(p.q, p.q_strides, head);
    const T* dout = sequence.template queries<T>(p.dout, p.dout_strides, head);
    const QTile q_tile{stages + stage * kStageElements};
    const QTile dout_tile{q_tile.base + Tile::kQueries * Tile::kHeadDim};
    const int first_query = tile * Tile::kQueries;
    copy_share<QTile>(q, p.q_strides.token, steps.q, first_query, 0, sequence.tokens, p.head_dim)
        .template copy<Tile::kThreads>(q_tile);
    copy_share<QTile>(dout, p.dout_strides.token, steps.dout, first_query, 0, sequence.tokens,
                      p.head_dim)
        .template copy<Tile::kThreads>(dout_tile);
    const int piece = device::not_before(device::thread_index()) * 4;
    if (piece < Tile::kStatistics) {
      device::cp_async(statistics + stage * Tile::kStatistics + piece,
                       record_of(sequence, head, tile).statistics() + piece);
    }
    device::cp_async_commit_group();
  };

  // From the last tile of the first head of the group to the first tile of the last.
  const auto follow = [&](int& head, int& tile) {
    head += tile > first_tile ? 0 : 1;
    tile = (tile > first_tile ? tile : end_tile) - 1;
  };
  const auto is_done = [&](int head) { return head >= (kv_head + 1) * steps.group; };
  int head = (first_tile < end_tile ? kv_head : kv_head + 1) * steps.group;
  int tile = end_tile - 1;
  if (!is_done(head)) {
    const T* k = sequence.template key_rows<T>(p.k, p.k_strides, kv_head);
    const T* v = sequence.template key_rows<T>(p.v, p.v_strides, kv_head);
    copy_share<KTile>(k, p.k_strides.token, steps.k, block_key, range.first, range.last, p.head_dim)
        .template copy<Tile::kThreads>(k_tile);
    copy_share<KTile>(v, p.v_strides.token, steps.v, block_key, range.first, range.last, p.head_dim)
        .template copy<Tile::kThreads>(v_tile);
    copy_queries(head, tile, 0);
  }

  const auto copy_following = [&](int head, int tile, int stage) {
    follow(head, tile);
    if (!is_done(head)) copy_queries(head, tile, stage);
  };

  float dk[kAtoms][kSumTiles][4];
  float dv[kAtoms][kSumTiles][4];
  clear(dk);
  clear(dv);
  Turn turn;
  int stage = 0;
  while (!is_done(head)) {
    device::cp_async_wait_group<0>();
    device::sync_threads();  // the queries are here; ds has been read by all
    if constexpr (Tile::kStages > 1) copy_following(head, tile, 1 - stage);

    // What follows from the warp and the lane is cheap, and the loop needs the registers.
    const int warp = device::warp_index_here();
    const int first_row = warp / Tile::kColumnWarps * Tile::kKeysPerWarp;  // of its keys
    const int sharing_warp = warp % Tile::kColumnWarps;
    const int first_key = block_key + first_row;
    const int first_query = tile * Tile::kQueries;
    const QTile q_tile{stages + stage * kStageElements};
    const QTile dout_tile{q_tile.base + Tile::kQueries * Tile::kHeadDim};
    const float* const lse = statistics + stage * Tile::kStatistics;
    const float* const delta = lse + Tile::kQueries;
    const auto sequence = sequence_at<kPacked>(p, device::not_before(at.sequence));
    const KeyRange range = key_range(p, sequence);
    const int end_query = first_query + Tile::kQueries;
    const int last_query = (end_query < sequence.tokens ? end_query : sequence.tokens) - 1;
    const bool masked =
        block_key < range.low(last_query) || block_key + Tile::kKeys > range.high(first_query);
    // Two chunks at work at a time would not fit the registers.
    LLMJP_DO_NOT_UNROLL
    for (int chunk = 0; chunk < Tile::kQueriesPerWarp; chunk += Tile::kChunk) {
      const int column = sharing_warp * Tile::kQueriesPerWarp + chunk;  // in the tile of queries
      const ChunkTile q_chunk{q_tile.base + column * Tile::kHeadDim};
      const ChunkTile dout_chunk{dout_tile.base + column * Tile::kHeadDim};
      float scores[kAtoms][kScoreTiles][4];
      float gradients[kAtoms][kScoreTiles][4];
      multiply_rows<T>(scores, k_tile, q_chunk, first_row, device::lane_index_here());
      turn.hand_on();
      multiply_rows<T>(gradients, v_tile, dout_chunk, first_row, device::lane_index_here());
      uint32_t dropped = 0;
      if constexpr (kGeneral) {
        if (p.dropout > 0.0f) {
          const DropoutTransposed dropout{
              static_cast<uint64_t>(p.random[0]), static_cast<uint64_t>(p.random[1]),
              sequence.lse_row(p, head), (int64_t{p.keys} + 3) / 4, p.dropout};
          dropped = dropout.template dropped<kAtoms, kScoreTiles>(first_key, first_query + column);
        }
        const float slope =
            p.alibi == nullptr ? 0.0f : p.alibi[at.sequence * p.alibi_batch_stride + head];
        apply_formulas_transposed(scores, gradients, p, range.shift, delta + column, dropped, slope,
                                  first_key, first_query + column);
      }
      if (masked) {
        mask_transposed(scores, range, sequence.tokens, first_key, first_query + column);
      }
      finish_gradients<kGeneral>(scores, gradients, p.exponent_scale, lse + column, delta + column,
                                 dropped);
      store_accumulators<T>(ds_tile, gradients, 1.0f, first_row, column / 8);
      if constexpr (Tile::kSharesP) {
        store_accumulators<T>(p_tile, scores, 1.0f, first_row, column / 8);
      } else {
        multiply_accumulators<T>(dv, scores, dout_chunk, device::lane_index_here());
        multiply_accumulators<T>(dk, gradients, q_chunk, device::lane_index_here());
      }
    }
    device::sync_threads();  // ds, and P where it is shared, are here
    if constexpr (Tile::kSharesP) {
      multiply_tiles<T, false>(dv, p_tile, dout_tile, first_row, sharing_warp * kSumTiles / 2,
                               device::lane_index_here());
      multiply_tiles<T, false>(dk, ds_tile, q_tile, first_row, sharing_warp * kSumTiles / 2,
                               device::lane_index_here());
      device::sync_threads();  // q and dout have been read by all
    }
    if constexpr (Tile::kStages == 1) copy_following(head, tile, 0);

    const auto record = record_of(sequence_here(), head, tile);
    const int dq_row = warp / Tile::kDqWarps * 32;
    LLMJP_DO_NOT_UNROLL
    for (int part = 0; part < Tile::kDqColumns; part += Tile::kDqPart) {
      const int dq_chunk = (warp % Tile::kDqWarps * Tile::kDqColumns + part) / 8;
      float dq[2][Tile::kDqPart / 8][4];
      clear(dq);
      multiply_tiles<T, true>(dq, ds_tile, k_tile, dq_row, dq_chunk / 2, device::lane_index_here());
      if (p.deterministic && part == 0) {
        turn.wait(record.turns() + warp, key_block - range.low(first_query) / Tile::kKeys);
      }
      add_sums<Tile::kHeadDim>(record.sums, dq, dq_row, dq_chunk);
    }
    tile = device::not_before(tile);  // else what follows is worked out once and kept
    follow(head, tile);
    if (Tile::kStages > 1) stage = 1 - stage;
  }
  turn.hand_on();
  device::sync_threads();  // k and v have been read by all

  const auto written = sequence_here();
  const int rows = written.keys - block_key;
  const int64_t row_stride = int64_t{p.kv_heads} * p.head_dim;
  const int64_t first = ((written.key_row() + block_key) * p.kv_heads + kv_head) * p.head_dim;
  const int warp = device::warp_index();
  const int first_row = warp / Tile::kColumnWarps * Tile::kKeysPerWarp;
  const int first_chunk = warp % Tile::kColumnWarps * kSumTiles;
  store_gradient(static_cast<T*>(p.dv) + first, row_stride, rows, p.head_dim, dv,
                 1.0f / (1.0f - p.dropout), v_tile, first_row, first_chunk);
  store_gradient(static_cast<T*>(p.dk) + first, row_stride, rows, p.head_dim, dk, p.scale, k_tile,
                 first_row, first_chunk);
}

}  // namespace llmjp::attention
