// The attention forward kernel. Formulas: attention.h; tiles and their reasons: tiles.h.
//
// A block keeps its queries in shared memory and walks over the keys from the last it sees to the
// first, so that the tiles with masked keys come first and usually only there. One buffer of k and
// one of v take turns: v's tile arrives while q · kᵀ is computed, the next k's during softmax and
// p · v. The scores stay in registers; rounded to 16 bits, the accumulators of one product are the
// operand of the next.
//
// Operations: 4 · head_dim for each query and key that are not masked; bytes: q, k, v and out once
// from memory, k and v again from the second-level cache for every block of queries.
#pragma once

#include "attention/attention.h"
#include "attention/products.cuh"
#include "attention/scores.cuh"
#include "attention/sequences.cuh"
#include "attention/tile_copy.cuh"
#include "attention/tiles.h"
#include "device/cp_async.h"
#include "device/schedule.h"
#include "device/shared.h"
#include "device/tile.h"
#include "device/vector.h"

namespace llmjp::attention {

// Divides by the sums of the softmax and writes out and lse of the warp's queries. `staging` is
// q's tile, whose rows of this warp no other warp touches: through it the rows leave in pieces of
// 16 bytes.
template <bool kPacked, class T, int kAtoms, int kOutTiles, class QTile>
LLMJP_DEVICE void store_rows(const AttentionForward& p, float (&out)[kAtoms][kOutTiles][4],
                             const SoftmaxState<kAtoms>& softmax, const QTile& staging,
                             int block_head, int first_query, int first_row) {
  const HeadPlace<kPacked> at(device::not_before(block_head), p.heads);
  const auto sequence = sequence_at<kPacked>(p, at.sequence);
  const int lane = device::lane_index();
  device::sync_warp();  // every lane has read its queries
  LLMJP_UNROLL
  for (int atom = 0; atom < kAtoms; ++atom) {
    LLMJP_UNROLL
    for (int half = 0; half < 2; ++half) {
      float sum = softmax.sum[atom][half];
      sum += device::shuffle_xor(sum, 1);
      sum += device::shuffle_xor(sum, 2);
      const bool blind = sum == 0.0f;
      const float factor = blind ? 0.0f : 1.0f / (sum * (1.0f - p.dropout));
      const int row = first_row + atom * 16 + half * 8 + row_of_lane();
      LLMJP_UNROLL
      for (int tile = 0; tile < kOutTiles; ++tile) {
        const uint32_t pair = device::pack<T>(out[atom][tile][half * 2] * factor,
                                              out[atom][tile][half * 2 + 1] * factor);
        device::shared_store(staging.at(row, tile) + column_of_lane(), pair);
      }
      const int query = first_query + atom * 16 + half * 8 + row_of_lane();
      if (lane % 4 == 0 && query < sequence.tokens) {
        const int64_t place = sequence.lse_row(p, at.head) + query;
        p.lse[place] = blind ? -kInfinity
                             : softmax.largest[atom][half] * p.exponent_scale * kLn2 +
                                   device::natural_log(sum);
      }
    }
  }
  device::sync_warp();
  using Piece = device::Vector<T, QTile::kChunkElements>;
  constexpr int kRowsPerPass = device::kWarpSize / QTile::kChunksPerRow;
  const int chunk = lane % QTile::kChunksPerRow;
  const int64_t row_stride = int64_t{p.heads} * p.head_dim;
  T* target = static_cast<T*>(p.out) + (sequence.query_row() * p.heads + at.head) * p.head_dim +
              chunk * QTile::kChunkElements;
  if (chunk * QTile::kChunkElements >= p.head_dim) return;
  LLMJP_UNROLL
  for (int pass = 0; pass < kAtoms * 16 / kRowsPerPass; ++pass) {
    const int row = pass * kRowsPerPass + lane / QTile::kChunksPerRow;
    if (first_query + row < sequence.tokens) {
      device::store(target + (first_query + row) * row_stride,
                    device::shared_load<Piece>(staging.at(first_row + row, chunk)));
    }
  }
}

template <class T, class Tile, bool kGeneral, class Order>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(Tile::kThreads, Tile::kBlocks)
    attention_forward_kernel(AttentionForward p, Order order, CopySteps steps) {
  constexpr int kAtoms = Tile::kRowsPerWarp / 16;
  using QTile = device::SwizzledTile<T, Tile::kRows, Tile::kHeadDim>;
  using KTile = device::SwizzledTile<T, Tile::kKeys, Tile::kHeadDim>;
  T* shared = device::dynamic_shared<T>();
  const QTile q_tile{shared};
  const KTile k_tile{shared + Tile::kRows * Tile::kHeadDim};
  const KTile v_tile{shared + (Tile::kRows + Tile::kKeys) * Tile::kHeadDim};

  constexpr bool kPacked = kIsPacked<Order>;
  const BlockPlace place = block_place(order, p.heads, device::block_index_x());
  if (place.row_block < 0) return;
  const HeadPlace<kPacked> at(place.head, p.heads);
  const auto sequence = sequence_at<kPacked>(p, at.sequence);
  const int kv_head = at.head / (p.heads / p.kv_heads);

  // The tiles of keys that some query of the block sees, and of these the ones that all queries see
  // whole.
  const int block_query = place.row_block * Tile::kRows;
  const int end_query = block_query + Tile::kRows;
  const int last_query = (end_query < sequence.tokens ? end_query : sequence.tokens) - 1;
  const KeyRange range = key_range(p, sequence);
  const int low = range.low(block_query);
  const int high = range.high(last_query);
  const int first_tile = low / Tile::kKeys;
  const int end_tile = high <= low ? first_tile : (high + Tile::kKeys - 1) / Tile::kKeys;
  const int first_whole = range.low(last_query);
  const int end_whole = range.high(block_query);

  float slope = 0.0f;
  Dropout dropout{};
  if constexpr (kGeneral) {
    if (p.alibi != nullptr && sequence.sees_keys(p)) {
      slope = p.alibi[sequence.index * p.alibi_batch_stride + at.head];
    }
    if (p.dropout > 0.0f) {
      dropout = {static_cast<uint64_t>(p.random[0]), static_cast<uint64_t>(p.random[1]),
                 sequence.lse_row(p, at.head), (int64_t{p.keys} + 3) / 4, p.dropout};
    }
  }
  const int first_row = device::warp_index() * Tile::kRowsPerWarp;  // of the warp, in the tile
  const int first_query = block_query + first_row;

  const int last_key = (end_tile - 1) * Tile::kKeys;  // first of the last tile
  auto k_share =
      copy_share<KTile>(sequence.template key_rows<T>(p.k, p.k_strides, kv_head), p.k_strides.token,
                        steps.k, last_key, range.first, range.last, p.head_dim);
  auto v_share =
      copy_share<KTile>(sequence.template key_rows<T>(p.v, p.v_strides, kv_head), p.v_strides.token,
                        steps.v, last_key, range.first, range.last, p.head_dim);
  if (first_tile < end_tile) {
    copy_share<QTile>(sequence.template queries<T>(p.q, p.q_strides, at.head), p.q_strides.token,
                      steps.q, block_query, 0, sequence.tokens, p.head_dim)
        .template copy<Tile::kThreads>(q_tile);
    k_share.template copy<Tile::kThreads>(k_tile);
    device::cp_async_commit_group();
  }

  float out[kAtoms][Tile::kHeadDim / 8][4];
  clear(out);
  SoftmaxState<kAtoms> softmax;
  softmax.clear();

  for (int tile = end_tile - 1; tile >= first_tile; --tile) {
    const int first_key = tile * Tile::kKeys;
    device::cp_async_wait_group<0>();
    device::sync_threads();  // k is here; the last tile's v has been read by all
    v_share.template copy<Tile::kThreads>(v_tile);
    device::cp_async_commit_group();
    v_share.move(-Tile::kKeys, -steps.v_tile);

    float scores[kAtoms][Tile::kKeys / 8][4];
    multiply_rows<T>(scores, q_tile, k_tile, first_row, device::not_before(device::lane_index()));
    device::cp_async_wait_group<0>();
    device::sync_threads();  // v is here; k has been read by all
    if (tile > first_tile) {
      k_share.move(-Tile::kKeys, -steps.k_tile);
      k_share.template copy<Tile::kThreads>(k_tile);
      device::cp_async_commit_group();
    }

    if constexpr (kGeneral) apply_formulas(scores, p, range.shift, slope, first_query, first_key);
    if (first_key < first_whole || first_key + Tile::kKeys > end_whole) {
      mask_scores(scores, range, first_query, first_key);
    }
    softmax.step(scores, out, p.exponent_scale);
    if constexpr (kGeneral) {
      if (p.dropout > 0.0f) dropout.apply(scores, first_query, first_key);
    }
    multiply_accumulators<T>(out, scores, v_tile, device::not_before(device::lane_index()));
  }
  store_rows<kPacked, T>(p, out, softmax, q_tile, place.head, first_query, first_row);
}

}  // namespace llmjp::attention
