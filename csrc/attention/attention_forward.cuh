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
#include "attention/scores.cuh"
#include "attention/tiles.h"
#include "device/cp_async.h"
#include "device/mma.h"
#include "device/schedule.h"
#include "device/shared.h"
#include "device/tile.h"
#include "device/vector.h"

namespace llmjp::attention {

// A thread's share of copying a matrix tile by tile: its 16-byte piece of a row, in every
// rows_of_pass-th row. `source` is its first piece in the tile to copy, `step` leads to its next.
template <class T>
struct CopyShare {
  const T* source;
  int64_t step;
  uint32_t place;   // of the first piece's row among the rows that exist; "negative" before them
  uint32_t places;  // rows that exist, 0 for pieces beyond head_dim

  template <int kThreads, class Tile>
  LLMJP_DEVICE void copy(const Tile& tile) const {
    constexpr int kRowsPerPass = rows_of_pass(kThreads, Tile::kColumns);
    static_assert(Tile::kRows % kRowsPerPass == 0, "every thread copies as many pieces");
    static_assert(kRowsPerPass % 8 == 0, "the swizzle is the same in every pass");
    T* target = tile.at(device::thread_index() / Tile::kChunksPerRow,
                        device::thread_index() % Tile::kChunksPerRow);
    const T* piece = source;
    LLMJP_UNROLL
    for (int pass = 0; pass < Tile::kRows / kRowsPerPass; ++pass) {
      // What does not exist becomes zero.
      device::cp_async(target + pass * kRowsPerPass * Tile::kColumns, piece,
                       place + pass * kRowsPerPass < places ? 16 : 0);
      piece += step;
    }
  }

  LLMJP_DEVICE void move(int rows, int64_t elements) {
    place += static_cast<uint32_t>(rows);
    source += elements;
  }
};

// For the tile from row `first` on of a matrix whose rows [begin, end) exist.
template <class Tile, class T>
LLMJP_DEVICE CopyShare<T> copy_share(const T* matrix, int64_t row_stride, int64_t step, int first,
                                     int begin, int end, int head_dim) {
  const int column = device::thread_index() % Tile::kChunksPerRow * Tile::kChunkElements;
  const int row = first + device::thread_index() / Tile::kChunksPerRow;
  return {matrix + row * row_stride + column, step, static_cast<uint32_t>(row - begin),
          static_cast<uint32_t>(column < head_dim ? end - begin : 0)};
}

// scores = q · kᵀ for the warp's queries and all keys of the tile.
template <class T, int kAtoms, int kTiles, class QTile, class KTile>
LLMJP_DEVICE void multiply_queries(float (&scores)[kAtoms][kTiles][4], const QTile& q,
                                   const KTile& k, int first_row) {
  const int lane = device::not_before(device::lane_index());
  LLMJP_UNROLL
  for (int atom = 0; atom < kAtoms; ++atom) {
    LLMJP_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      LLMJP_UNROLL
      for (int r = 0; r < 4; ++r) scores[atom][tile][r] = 0.0f;
    }
  }
  LLMJP_UNROLL
  for (int step = 0; step < QTile::kColumns / 16; ++step) {
    const T* q_rows = q.at(first_row + lane % 16, step, lane / 16);
    // Two tiles of eight keys at once: lanes 0-15 name the first's two halves of the step, 16-31
    // the second's, so that an operand's two registers are neighbours and none is moved.
    const T* k_rows = k.at(lane / 16 * 8 + lane % 8, step, lane / 8 % 2);
    uint32_t q_fragment[kAtoms][4];
    LLMJP_UNROLL
    for (int atom = 0; atom < kAtoms; ++atom) {
      device::ldmatrix(q_fragment[atom], q_rows + atom * 16 * QTile::kColumns);
    }
    LLMJP_UNROLL
    for (int pair = 0; pair < kTiles / 2; ++pair) {
      uint32_t k_fragment[4];
      device::ldmatrix(k_fragment, k_rows + pair * 16 * KTile::kColumns);
      LLMJP_UNROLL
      for (int atom = 0; atom < kAtoms; ++atom) {
        device::mma_m16n8k16<T>(scores[atom][pair * 2], q_fragment[atom],
                                {k_fragment[0], k_fragment[1]});
        device::mma_m16n8k16<T>(scores[atom][pair * 2 + 1], q_fragment[atom],
                                {k_fragment[2], k_fragment[3]});
      }
    }
  }
}

// out += p · v, with p rounded to T.
template <class T, int kAtoms, int kTiles, int kOutTiles, class VTile>
LLMJP_DEVICE void multiply_values(float (&out)[kAtoms][kOutTiles][4],
                                  const float (&p)[kAtoms][kTiles][4], const VTile& v) {
  const int lane = device::not_before(device::lane_index());
  LLMJP_UNROLL
  for (int step = 0; step < kTiles / 2; ++step) {
    uint32_t p_fragment[kAtoms][4];
    LLMJP_UNROLL
    for (int atom = 0; atom < kAtoms; ++atom) {
      LLMJP_UNROLL
      for (int r = 0; r < 4; ++r) {
        const float (&values)[4] = p[atom][step * 2 + r / 2];
        p_fragment[atom][r] = device::pack<T>(values[r % 2 * 2], values[r % 2 * 2 + 1]);
      }
    }
    LLMJP_UNROLL
    for (int pair = 0; pair < kOutTiles / 2; ++pair) {
      uint32_t v_fragment[4];
      device::ldmatrix_trans(v_fragment,
                             v.at(lane % 16, pair, lane / 16) + step * 16 * VTile::kColumns);
      LLMJP_UNROLL
      for (int atom = 0; atom < kAtoms; ++atom) {
        device::mma_m16n8k16<T>(out[atom][pair * 2], p_fragment[atom],
                                {v_fragment[0], v_fragment[1]});
        device::mma_m16n8k16<T>(out[atom][pair * 2 + 1], p_fragment[atom],
                                {v_fragment[2], v_fragment[3]});
      }
    }
  }
}

// Divides by the sums of the softmax and writes out and lse of the warp's queries. `staging` is
// q's tile, whose rows of this warp no other warp touches: through it the rows leave in pieces of
// 16 bytes.
template <class T, int kAtoms, int kOutTiles, class QTile>
LLMJP_DEVICE void store_rows(const AttentionForward& p, float (&out)[kAtoms][kOutTiles][4],
                             const SoftmaxState<kAtoms>& softmax, const QTile& staging,
                             int block_head, int first_query, int first_row) {
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
      if (lane % 4 == 0 && query < p.tokens) {
        const int64_t place = int64_t{block_head} * p.tokens + query;
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
  const int batch_index = block_head / p.heads;
  const int head = block_head - batch_index * p.heads;
  T* target = static_cast<T*>(p.out) +
              (int64_t{batch_index} * p.tokens * p.heads + head) * p.head_dim +
              chunk * QTile::kChunkElements;
  if (chunk * QTile::kChunkElements >= p.head_dim) return;
  LLMJP_UNROLL
  for (int pass = 0; pass < kAtoms * 16 / kRowsPerPass; ++pass) {
    const int row = pass * kRowsPerPass + lane / QTile::kChunksPerRow;
    if (first_query + row < p.tokens) {
      device::store(target + (first_query + row) * row_stride,
                    device::shared_load<Piece>(staging.at(first_row + row, chunk)));
    }
  }
}

template <class T, class Tile, bool kGeneral>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(Tile::kThreads, Tile::kBlocks)
    attention_forward_kernel(AttentionForward p, Schedule schedule, CopySteps steps) {
  constexpr int kAtoms = Tile::kRowsPerWarp / 16;
  using QTile = device::SwizzledTile<T, Tile::kRows, Tile::kHeadDim>;
  using KTile = device::SwizzledTile<T, Tile::kKeys, Tile::kHeadDim>;
  T* shared = device::dynamic_shared<T>();
  const QTile q_tile{shared};
  const KTile k_tile{shared + Tile::kRows * Tile::kHeadDim};
  const KTile v_tile{shared + (Tile::kRows + Tile::kKeys) * Tile::kHeadDim};

  const BlockPlace place = block_place(schedule, device::block_index_x());
  const int batch_index = place.head / p.heads;
  const int head = place.head - batch_index * p.heads;
  const int kv_head = head / (p.heads / p.kv_heads);
  const T* q =
      static_cast<const T*>(p.q) + batch_index * p.q_strides.batch + head * p.q_strides.head;
  const T* k =
      static_cast<const T*>(p.k) + batch_index * p.k_strides.batch + kv_head * p.k_strides.head;
  const T* v =
      static_cast<const T*>(p.v) + batch_index * p.v_strides.batch + kv_head * p.v_strides.head;

  // The tiles of keys that some query of the block sees, and of these the ones that all queries see
  // whole.
  const int block_query = place.row_block * Tile::kRows;
  const int last_query =
      (block_query + Tile::kRows < p.tokens ? block_query + Tile::kRows : p.tokens) - 1;
  const KeyRange range = key_range(p, batch_index);
  const int low = range.low(block_query);
  const int high = range.high(last_query);
  const int first_tile = low / Tile::kKeys;
  const int end_tile = high <= low ? first_tile : (high + Tile::kKeys - 1) / Tile::kKeys;
  const int first_whole = range.low(last_query);
  const int end_whole = range.high(block_query);

  float slope = 0.0f;
  Dropout dropout{};
  if constexpr (kGeneral) {
    if (p.alibi != nullptr) slope = p.alibi[batch_index * p.alibi_batch_stride + head];
    if (p.dropout > 0.0f) {
      dropout = {static_cast<uint64_t>(p.random[0]), static_cast<uint64_t>(p.random[1]),
                 int64_t{place.head} * p.tokens, (int64_t{p.keys} + 3) / 4, p.dropout};
    }
  }
  const int first_row = device::warp_index() * Tile::kRowsPerWarp;  // of the warp, in the tile
  const int first_query = block_query + first_row;

  const int last_key = (end_tile - 1) * Tile::kKeys;  // first of the last tile
  auto k_share = copy_share<KTile>(k, p.k_strides.token, steps.k, last_key, range.first, range.last,
                                   p.head_dim);
  auto v_share = copy_share<KTile>(v, p.v_strides.token, steps.v, last_key, range.first, range.last,
                                   p.head_dim);
  if (first_tile < end_tile) {
    copy_share<QTile>(q, p.q_strides.token, steps.q, block_query, 0, p.tokens, p.head_dim)
        .template copy<Tile::kThreads>(q_tile);
    k_share.template copy<Tile::kThreads>(k_tile);
    device::cp_async_commit_group();
  }

  float out[kAtoms][Tile::kHeadDim / 8][4];
  LLMJP_UNROLL
  for (int atom = 0; atom < kAtoms; ++atom) {
    LLMJP_UNROLL
    for (int tile = 0; tile < Tile::kHeadDim / 8; ++tile) {
      LLMJP_UNROLL
      for (int r = 0; r < 4; ++r) out[atom][tile][r] = 0.0f;
    }
  }
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
    multiply_queries<T>(scores, q_tile, k_tile, first_row);
    device::cp_async_wait_group<0>();
    device::sync_threads();  // v is here; k has been read by all
    if (tile > first_tile) {
      k_share.move(-Tile::kKeys, -steps.k_tile);
      k_share.template copy<Tile::kThreads>(k_tile);
      device::cp_async_commit_group();
    }

    if constexpr (kGeneral) apply_formulas(scores, p, slope, first_query, first_key);
    if (first_key < first_whole || first_key + Tile::kKeys > end_whole) {
      mask_scores(scores, range, first_query, first_key);
    }
    softmax.step(scores, out, p.exponent_scale);
    if constexpr (kGeneral) {
      if (p.dropout > 0.0f) dropout.apply(scores, first_query, first_key);
    }
    multiply_values<T>(out, scores, v_tile);
  }
  store_rows<T>(p, out, softmax, q_tile, place.head, first_query, first_row);
}

}  // namespace llmjp::attention
