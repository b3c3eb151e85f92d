// Scores of a warp's sixteen rows, which are several heads' query tokens: row r of a key head is
// token r / group of its head r % group.
#pragma once

#include <cmath>

#include "attention/attention_decode.h"
#include "attention/products.cuh"
#include "attention/scores.cuh"
#include "device/mma.h"
#include "device/tile.h"

namespace llmjp::attention {

// Of numbers that are not negative, which a GPU divides in fewer instructions.
LLMJP_DEVICE int quotient(int dividend, int divisor) {
  return static_cast<int>(static_cast<unsigned>(dividend) / static_cast<unsigned>(divisor));
}

LLMJP_DEVICE bool fits_cache(const AttentionDecode& p, int filled) {
  return filled >= 0 && int64_t{filled} + p.fresh <= p.capacity();
}

// The keys that a sequence's tokens see; none where it does not fit its cache.
LLMJP_DEVICE KeyRange decode_range(const AttentionDecode& p, int batch_index) {
  const int filled = p.cache_seqlens[batch_index];
  const int total = fits_cache(p, filled) ? filled + p.fresh : 0;
  KeyRange range{0, total, total - p.tokens, p.window_left, 0};
  if (p.starts_k != nullptr && p.starts_k[batch_index] > 0) range.first = p.starts_k[batch_index];
  return range;
}

// What the scores of a lane's two rows need to know.
struct DecodeRows {
  int low[2];  // the keys that a row sees, [low, high)
  int high[2];
  float position[2];
  float slope[2];

  LLMJP_DEVICE DecodeRows(const AttentionDecode& p, const KeyRange& range, int batch_index,
                          int kv_head, int first_row) {
    LLMJP_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + half * 8 + row_of_lane();
      const int token = quotient(row, p.group);
      low[half] = range.low(token);
      high[half] = range.high(token);
      position[half] = static_cast<float>(token + range.shift);
      slope[half] = 0.0f;
      if (p.alibi != nullptr && token < p.tokens) {
        slope[half] =
            p.alibi[batch_index * p.alibi_batch_stride + kv_head * p.group + row - token * p.group];
      }
    }
  }

  // Scale, softcap and ALiBi of raw products q · k.
  template <int kTiles>
  LLMJP_DEVICE void apply_formulas(float (&scores)[1][kTiles][4], const AttentionDecode& p,
                                   int first_key) const {
    const float inverse_softcap = p.softcap > 0.0f ? 1.0f / p.softcap : 0.0f;
    LLMJP_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      LLMJP_UNROLL
      for (int r = 0; r < 4; ++r) {
        const int key = first_key + tile * 8 + column_of_lane() + r % 2;
        float score = scores[0][tile][r] * p.scale;
        if (p.softcap > 0.0f) score = p.softcap * tanh_approx(score * inverse_softcap);
        scores[0][tile][r] =
            score - slope[r / 2] * std::fabs(position[r / 2] - static_cast<float>(key));
      }
    }
  }

  template <int kTiles>
  LLMJP_DEVICE void mask(float (&scores)[1][kTiles][4], int first_key) const {
    LLMJP_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      LLMJP_UNROLL
      for (int r = 0; r < 4; ++r) {
        const int key = first_key + tile * 8 + column_of_lane() + r % 2;
        if (key < low[r / 2] || key >= high[r / 2]) scores[0][tile][r] = -kInfinity;
      }
    }
  }
};

// products = a · bᵀ for sixteen rows of a held in registers, as operands of m16n8k16.
template <class T, int kSteps, int kTiles, class BTile>
LLMJP_DEVICE void multiply_held(float (&products)[1][kTiles][4], const uint32_t (&a)[kSteps][4],
                                const BTile& b, int lane) {
  clear(products);
  LLMJP_UNROLL
  for (int step = 0; step < kSteps; ++step) {
    const T* b_rows = b.at(lane / 16 * 8 + lane % 8, step, lane / 8 % 2);
    LLMJP_UNROLL
    for (int pair = 0; pair < kTiles / 2; ++pair) {
      uint32_t b_fragment[4];
      device::ldmatrix(b_fragment, b_rows + pair * 16 * BTile::kColumns);
      device::mma_m16n8k16<T>(products[0][pair * 2], a[step], {b_fragment[0], b_fragment[1]});
      device::mma_m16n8k16<T>(products[0][pair * 2 + 1], a[step], {b_fragment[2], b_fragment[3]});
    }
  }
}

}  // namespace llmjp::attention
