// The decode kernel. Formulas: attention_decode.h; tiles and their reasons: decode_tiles.h.
//
// A block takes some rows of a key head (its query heads' tokens) and one part of the keys, so that
// few sequences fill a GPU too. Tiles of keys with their values come through a ring of stages. The
// lengths are read here: a launch depends on shapes alone, parts without work end at once. Where
// there are several parts attention_decode_combine_kernel adds them up.
#pragma once

#include "attention/attention_decode.h"
#include "attention/decode_keys.cuh"
#include "attention/decode_scores.cuh"
#include "attention/decode_tiles.h"
#include "attention/products.cuh"
#include "attention/scores.cuh"
#include "device/cp_async.h"
#include "device/schedule.h"
#include "device/shared.h"
#include "device/tile.h"
#include "device/vector.h"

namespace llmjp::attention {

// What a block works on. Its index runs over row blocks, key heads, parts and sequences, the first
// fastest: blocks at work at one time read neighbouring memory.
struct DecodePlace {
  int row_block;
  int kv_head;
  int split;
  int batch_index;

  LLMJP_DEVICE DecodePlace(const AttentionDecode& p, int index) {
    const int kv_index = quotient(index, p.row_blocks);
    const int split_index = quotient(kv_index, p.kv_heads);
    row_block = index - kv_index * p.row_blocks;
    kv_head = kv_index - split_index * p.kv_heads;
    batch_index = quotient(split_index, p.splits);
    split = split_index - batch_index * p.splits;
  }
};

// Where row r of a key head stands among the rows (batch, head, token) of lse.
LLMJP_DEVICE int64_t place_of_row(const AttentionDecode& p, const DecodePlace& place, int row) {
  const int token = quotient(row, p.group);
  const int head = place.kv_head * p.group + row - token * p.group;
  return (int64_t{place.batch_index} * p.heads + head) * p.tokens + token;
}

// Parts of the workspace: for each part of the keys and each row of lse head_dim sums of p · v;
// then, as often, the largest exponent of 2 and the sum of p.
LLMJP_DEVICE int64_t lse_rows(const AttentionDecode& p) {
  return int64_t{p.batch} * p.heads * p.tokens;
}
LLMJP_DEVICE float* sums_of_split(const AttentionDecode& p, int split, int64_t row) {
  return p.workspace + (split * lse_rows(p) + row) * p.head_dim;
}
LLMJP_DEVICE float* statistics_of_split(const AttentionDecode& p, int split, int64_t row) {
  return p.workspace + p.splits * lse_rows(p) * p.head_dim + (split * lse_rows(p) + row) * 2;
}

using Statistics = device::Vector<float, 2>;

// A part without keys takes no share in what is combined.
template <class Tile>
LLMJP_DEVICE void store_empty_part(const AttentionDecode& p, const DecodePlace& place,
                                   int first_row, int rows) {
  for (int row = device::thread_index(); row < rows; row += Tile::kThreads) {
    device::store(statistics_of_split(p, place.split, place_of_row(p, place, first_row + row)),
                  Statistics{{-kInfinity, 0.0f}});
  }
}

// The rows of q, zero where there are none.
template <class T, class Tile, class QTile>
LLMJP_DEVICE void copy_rows(const QTile& q_tile, const AttentionDecode& p, const DecodePlace& place,
                            int first_row, int rows) {
  constexpr int kRowsPerPass = Tile::kThreads / QTile::kChunksPerRow;
  const int chunk = device::thread_index() % QTile::kChunksPerRow;
  const T* q = static_cast<const T*>(p.q) + place.batch_index * p.q_strides.batch +
               int64_t{place.kv_head} * p.group * p.q_strides.head + chunk * QTile::kChunkElements;
  LLMJP_UNROLL
  for (int pass = 0; pass < Tile::kRows / kRowsPerPass; ++pass) {
    const int row = pass * kRowsPerPass + device::thread_index() / QTile::kChunksPerRow;
    const bool is_there = row < rows && chunk * QTile::kChunkElements < p.head_dim;
    const int token = quotient(first_row + row, p.group);
    const int head = first_row + row - token * p.group;
    device::cp_async(q_tile.at(row, chunk), q + token * p.q_strides.token + head * p.q_strides.head,
                     is_there ? 16 : 0);
  }
}

// Writes a warp's sums and its rows' statistics where the block adds up its warps' parts.
template <class Tile>
LLMJP_DEVICE void share_sums(float* scratch, const float (&out)[1][Tile::kHeadDim / 8][4],
                             const SoftmaxState<1>& softmax, float exponent_scale) {
  const int lane = device::lane_index();
  const int warp = device::warp_index();
  const int warp_row = warp / Tile::kKeyWarps * 16;
  const int part = warp % Tile::kKeyWarps;
  LLMJP_UNROLL
  for (int half = 0; half < 2; ++half) {
    float sum = softmax.sum[0][half];
    sum += device::shuffle_xor(sum, 1);
    sum += device::shuffle_xor(sum, 2);
    const int row = part * Tile::kRows + warp_row + half * 8 + row_of_lane();
    LLMJP_UNROLL
    for (int tile = 0; tile < Tile::kHeadDim / 8; ++tile) {
      device::shared_store(
          scratch + row * Tile::kSumStride + tile * 8 + column_of_lane(),
          device::Vector<float, 2>{{out[0][tile][half * 2], out[0][tile][half * 2 + 1]}});
    }
    if (lane % 4 == 0) {
      device::shared_store(scratch + Tile::kKeyWarps * Tile::kRows * Tile::kSumStride + row * 2,
                           Statistics{{softmax.largest[0][half] * exponent_scale, sum}});
    }
  }
}

// Adds up the warps' parts, always in the same order, and writes the rows: out and lse where the
// keys are in one part, else what the combining kernel reads.
template <class T, class Tile>
LLMJP_DEVICE void store_rows(const AttentionDecode& p, const DecodePlace& place,
                             const float* scratch, int first_row, int rows) {
  constexpr int kChunk = 8;
  constexpr int kChunksPerRow = Tile::kHeadDim / kChunk;
  constexpr int kRowsPerPass = Tile::kThreads / kChunksPerRow;
  using Quarter = device::Vector<float, 4>;
  const float* statistics = scratch + Tile::kKeyWarps * Tile::kRows * Tile::kSumStride;
  const int column = device::thread_index() % kChunksPerRow * kChunk;
  if (column >= p.head_dim) return;
  LLMJP_DO_NOT_UNROLL
  for (int row = device::thread_index() / kChunksPerRow; row < rows; row += kRowsPerPass) {
    Statistics of_part[Tile::kKeyWarps];
    float top = -kInfinity;
    LLMJP_UNROLL
    for (int part = 0; part < Tile::kKeyWarps; ++part) {
      of_part[part] = device::shared_load<Statistics>(statistics + (part * Tile::kRows + row) * 2);
      top = device::larger(top, of_part[part].elements[0]);
    }
    const float offset = top == -kInfinity ? 0.0f : top;
    float sum = 0.0f;
    float values[kChunk] = {};
    LLMJP_UNROLL
    for (int part = 0; part < Tile::kKeyWarps; ++part) {
      const float factor = device::exp2_approx(of_part[part].elements[0] - offset);
      sum += of_part[part].elements[1] * factor;
      const float* sums = scratch + (part * Tile::kRows + row) * Tile::kSumStride + column;
      LLMJP_UNROLL
      for (int quarter = 0; quarter < 2; ++quarter) {
        const auto four = device::shared_load<Quarter>(sums + quarter * 4);
        LLMJP_UNROLL
        for (int i = 0; i < 4; ++i) values[quarter * 4 + i] += four.elements[i] * factor;
      }
    }
    const int64_t row_place = place_of_row(p, place, first_row + row);
    if (p.splits > 1) {
      float* target = sums_of_split(p, place.split, row_place) + column;
      device::store(target, Quarter{{values[0], values[1], values[2], values[3]}});
      device::store(target + 4, Quarter{{values[4], values[5], values[6], values[7]}});
      if (column == 0) {
        device::store(statistics_of_split(p, place.split, row_place), Statistics{{top, sum}});
      }
    } else {
      const bool blind = sum == 0.0f;
      const float factor = blind ? 0.0f : 1.0f / sum;
      LLMJP_UNROLL
      for (float& value : values) value *= factor;
      const int token = quotient(first_row + row, p.group);
      const int head = place.kv_head * p.group + first_row + row - token * p.group;
      T* target = static_cast<T*>(p.out) +
                  ((int64_t{place.batch_index} * p.tokens + token) * p.heads + head) * p.head_dim;
      device::store(target + column, device::from_floats<T>(values));
      if (column == 0) {
        p.lse[row_place] = blind ? -kInfinity : top * kLn2 + device::natural_log(sum);
      }
    }
  }
}

template <class T, class Tile>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(Tile::kThreads, Tile::kBlocks)
    attention_decode_kernel(AttentionDecode p) {
  using QTile = device::SwizzledTile<T, Tile::kRows, Tile::kHeadDim>;
  using WarpTile = device::SwizzledTile<T, Tile::kKeysPerWarp, Tile::kHeadDim>;
  constexpr int kSteps = Tile::kHeadDim / 16;
  T* shared = device::dynamic_shared<T>();

  const DecodePlace place(p, device::block_index_x());
  const int filled = p.cache_seqlens[place.batch_index];
  const bool fits = fits_cache(p, filled);
  const KeyRange range = decode_range(p, place.batch_index);

  // The tiles of keys that some row sees, and of these the block's part.
  const int first_row = place.row_block * Tile::kRows;
  const int rows_left = p.group * p.tokens - first_row;
  const int rows = rows_left < Tile::kRows ? rows_left : Tile::kRows;
  const int first_token = quotient(first_row, p.group);
  const int last_token = quotient(first_row + (rows > 0 ? rows - 1 : 0), p.group);
  const int low = range.low(first_token);
  const int high = range.high(last_token);
  const int tiles = high <= low ? 0 : (high - low + Tile::kKeys - 1) / Tile::kKeys;
  const TileRange part = tiles_of_split(tiles, p.splits, place.split);

  const SequenceKeys<T> keys{p, place.batch_index, place.kv_head, filled, high};
  // Parts beyond the keys append their share and end; the first part always writes its rows.
  const bool has_work = part.first < part.end || place.split == 0;
  const QTile q_tile{shared + (Tile::kStages - 1) * Tile::kStageElements};
  KeyCopy<T, Tile> copy(keys, low + part.first * Tile::kKeys);
  LLMJP_DO_NOT_UNROLL
  for (int stage = 0; stage < Tile::kStages - 1; ++stage) {
    if (part.first + stage < part.end) copy.copy(shared + stage * Tile::kStageElements);
    // With the first tile: keys are further away than what follows from the rows.
    if (stage == 0 && has_work) copy_rows<T, Tile>(q_tile, p, place, first_row, rows);
    device::cp_async_commit_group();
  }
  if (fits) {
    append_keys<T, Tile>(keys, place.split * p.row_blocks + place.row_block,
                         p.splits * p.row_blocks);
  }
  if (!has_work) {
    store_empty_part<Tile>(p, place, first_row, rows);
    return;
  }

  const int warp = device::warp_index();
  const int warp_row = warp / Tile::kKeyWarps * 16;                  // of its rows in the block
  const int warp_key = warp % Tile::kKeyWarps * Tile::kKeysPerWarp;  // of its keys in a tile
  uint32_t q[kSteps][4];
  device::cp_async_wait_group<Tile::kStages - 2>();
  device::sync_threads();  // q is here
  LLMJP_UNROLL
  for (int step = 0; step < kSteps; ++step) {
    const int lane = device::lane_index();
    device::ldmatrix(q[step], q_tile.at(warp_row + lane % 16, step, lane / 16));
  }
  const int first_whole = range.low(last_token);  // keys that all rows see
  const int end_whole = range.high(first_token);

  float out[1][Tile::kHeadDim / 8][4];
  clear(out);
  SoftmaxState<1> softmax;
  softmax.clear();
  int stage = 0;
  for (int tile = part.first; tile < part.end; ++tile) {
    device::cp_async_wait_group<Tile::kStages - 2>();
    device::sync_threads();  // the tile is here; the stage before has been read by all
    const int stage_before = (stage == 0 ? Tile::kStages : stage) - 1;
    if (tile + Tile::kStages - 1 < part.end) {
      copy.copy(shared + stage_before * Tile::kStageElements);
    }
    device::cp_async_commit_group();

    const int first_key = low + tile * Tile::kKeys + warp_key;
    const int lane = device::lane_index_here();
    const WarpTile k_tile{shared + stage * Tile::kStageElements + warp_key * Tile::kHeadDim};
    const WarpTile v_tile{k_tile.base + Tile::kStageElements / 2};
    float scores[1][Tile::kKeysPerWarp / 8][4];
    multiply_held<T>(scores, q, k_tile, lane);
    const bool masked = first_key < first_whole || first_key + Tile::kKeysPerWarp > end_whole;
    if (masked || p.has_formulas) {
      // Worked out again for each tile: the loop needs the registers.
      const int batch_index = device::not_before(place.batch_index);
      const DecodeRows row_facts(p, decode_range(p, batch_index), batch_index, place.kv_head,
                                 device::not_before(first_row + warp_row));
      if (p.has_formulas) row_facts.apply_formulas(scores, p, first_key);
      if (masked) row_facts.mask(scores, first_key);
    }
    softmax.step(scores, out, p.exponent_scale);
    multiply_accumulators<T>(out, scores, v_tile, lane);
    stage = stage + 1 == Tile::kStages ? 0 : stage + 1;
  }
  if (!fits || copy.is_faulty()) softmax.sum[0][0] = softmax.sum[0][1] = NAN;

  device::cp_async_wait_group<0>();
  device::sync_threads();  // all have read the last tile
  float* scratch = reinterpret_cast<float*>(shared);
  share_sums<Tile>(scratch, out, softmax, p.exponent_scale);
  device::sync_threads();
  store_rows<T, Tile>(p, place, scratch, first_row, rows);
}

}  // namespace llmjp::attention
