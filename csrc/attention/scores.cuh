// What happens to a warp's scores between the two matrix products: formulas, masks, softmax,
// dropout.
//
// A warp holds them as accumulators of m16n8k16: value [atom][tile][r] of a lane is the score of
// query 16 · atom + lane / 4 + 8 · (r / 2) and key 8 · tile + lane % 4 · 2 + r % 2, so that the
// four lanes of a quad share a query's row.
#pragma once

#include <cmath>

#include "attention/attention.h"
#include "attention/sequences.cuh"
#include "device/math.h"
#include "device/philox.h"
#include "device/schedule.h"
#include "device/shuffle.h"
#include "device/thread.h"

namespace llmjp::attention {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kInfinity = INFINITY;

// The keys that a query sees, [low, high), before they are cut to what exists.
struct KeyRange {
  int first;  // of the sequence: starts_k, seqlens_k and the tensor's length
  int last;
  int shift;  // position of query 0 among the keys
  int left;   // window; -1: open
  int right;

  LLMJP_DEVICE int low(int query) const {
    const int bound = left < 0 ? first : query + shift - left;
    return bound > first ? bound : first;
  }
  LLMJP_DEVICE int high(int query) const {
    const int bound = right < 0 ? last : query + shift + right + 1;
    return bound < last ? bound : last;
  }

  // The queries that see a key of the sequence, [first_query, end_query).
  LLMJP_DEVICE int first_query(int key) const {
    return right < 0 || key - shift < right ? 0 : key - shift - right;
  }
  LLMJP_DEVICE int end_query(int key, int tokens) const {
    return left < 0 || key - shift >= tokens - left ? tokens : key - shift + left + 1;
  }
};

template <bool kPacked>
LLMJP_DEVICE KeyRange key_range(const AttentionProblem& p, const Sequence<kPacked>& sequence) {
  KeyRange range{0, sequence.keys, sequence.keys - sequence.tokens, p.window_left, p.window_right};
  if constexpr (kPacked) {
    if (!sequence.sees_keys(p)) range.last = 0;
  } else {
    const int index = sequence.index;
    if (p.starts_k != nullptr && p.starts_k[index] > 0) range.first = p.starts_k[index];
    if (p.seqlens_k != nullptr && p.seqlens_k[index] < p.keys) range.last = p.seqlens_k[index];
  }
  return range;
}

LLMJP_DEVICE int row_of_lane() { return device::lane_index() / 4; }
LLMJP_DEVICE int column_of_lane() { return device::lane_index() % 4 * 2; }

template <int kAtoms, int kTiles>
LLMJP_DEVICE void mask_scores(float (&scores)[kAtoms][kTiles][4], const KeyRange& range,
                              int first_query, int first_key) {
  LLMJP_UNROLL
  for (int atom = 0; atom < kAtoms; ++atom) {
    LLMJP_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int query = first_query + atom * 16 + half * 8 + row_of_lane();
      const int low = range.low(query) - first_key - column_of_lane();
      const int high = range.high(query) - first_key - column_of_lane();
      LLMJP_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        LLMJP_UNROLL
        for (int i = 0; i < 2; ++i) {
          const int column = tile * 8 + i;
          if (column < low || column >= high) scores[atom][tile][half * 2 + i] = -kInfinity;
        }
      }
    }
  }
}

// tanh x = 1 − 2 / (1 + e²ˣ): one exponential and one reciprocal, off by a few 2⁻²⁴ of the bound.
LLMJP_DEVICE float tanh_approx(float x) {
  return 1.0f - 2.0f * device::reciprocal_approx(1.0f + device::exp2_approx(2.0f * kLog2E * x));
}

// Scale, softcap and ALiBi of raw products q · k; query 0 stands at key `shift`.
template <int kAtoms, int kTiles>
LLMJP_DEVICE void apply_formulas(float (&scores)[kAtoms][kTiles][4], const AttentionProblem& p,
                                 int shift, float slope, int first_query, int first_key) {
  const float inverse_softcap = p.softcap > 0.0f ? 1.0f / p.softcap : 0.0f;
  LLMJP_UNROLL
  for (int atom = 0; atom < kAtoms; ++atom) {
    LLMJP_UNROLL
    for (int r = 0; r < 4; ++r) {
      const int query = first_query + atom * 16 + r / 2 * 8 + row_of_lane();
      const int distance = query + shift - first_key - column_of_lane() - r % 2;
      LLMJP_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        float score = scores[atom][tile][r] * p.scale;
        if (p.softcap > 0.0f) score = p.softcap * tanh_approx(score * inverse_softcap);
        if (p.alibi != nullptr) {
          score -= slope * std::fabs(static_cast<float>(distance - tile * 8));
        }
        scores[atom][tile][r] = score;
      }
    }
  }
}

// The online softmax of a warp's queries: the largest score so far, and the sum of exponentials
// over the keys that this lane has seen.
template <int kAtoms>
struct SoftmaxState {
  float largest[kAtoms][2];
  float sum[kAtoms][2];

  LLMJP_DEVICE void clear() {
    LLMJP_UNROLL
    for (int atom = 0; atom < kAtoms; ++atom) {
      LLMJP_UNROLL
      for (int half = 0; half < 2; ++half) {
        largest[atom][half] = -kInfinity;
        sum[atom][half] = 0.0f;
      }
    }
  }

  // Turns scores into exp2((score - largest) · exponent_scale) and scales what has been summed up
  // in `out` under a smaller largest score.
  template <int kTiles, int kOutTiles>
  LLMJP_DEVICE void step(float (&scores)[kAtoms][kTiles][4], float (&out)[kAtoms][kOutTiles][4],
                         float exponent_scale) {
    LLMJP_UNROLL
    for (int atom = 0; atom < kAtoms; ++atom) {
      LLMJP_UNROLL
      for (int half = 0; half < 2; ++half) {
        float top = largest[atom][half];
        LLMJP_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          top = device::larger(
              top, device::larger(scores[atom][tile][half * 2], scores[atom][tile][half * 2 + 1]));
        }
        top = device::larger(top, device::shuffle_xor(top, 1));
        top = device::larger(top, device::shuffle_xor(top, 2));
        // A row without a key so far: exp2(-inf - 0) is 0 where exp2(-inf + inf) would be NaN.
        const float offset = top == -kInfinity ? 0.0f : top * exponent_scale;
        const float factor = device::exp2_approx(largest[atom][half] * exponent_scale - offset);
        float added = 0.0f;
        LLMJP_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          LLMJP_UNROLL
          for (int i = 0; i < 2; ++i) {
            float& value = scores[atom][tile][half * 2 + i];
            value = device::exp2_approx(value * exponent_scale - offset);
            added += value;
          }
        }
        largest[atom][half] = top;
        sum[atom][half] = sum[atom][half] * factor + added;
        LLMJP_UNROLL
        for (int tile = 0; tile < kOutTiles; ++tile) {
          out[atom][tile][half * 2] *= factor;
          out[atom][tile][half * 2 + 1] *= factor;
        }
      }
    }
  }
};

// Dropout of the rows of one head. Key j of row r is dropped where word j % 4 of Philox at position
// r · ⌈keys / 4⌉ + j / 4 falls below the share.
struct Dropout {
  uint64_t seed;
  uint64_t offset;
  int64_t first_row;  // of the sequence and head: where its lse begins
  int64_t words_of_row;
  float share;

  // The four keys of one Philox draw lie in two neighbouring lanes. The even one draws for the
  // upper row, the odd one for the lower, and they swap halves: one draw for four numbers, not two.
  template <int kAtoms, int kTiles>
  LLMJP_DEVICE void apply(float (&probabilities)[kAtoms][kTiles][4], int first_query,
                          int first_key) const {
    const bool odd = device::lane_index() % 2 != 0;
    // The keys of Philox' ten rounds follow from the seed: twenty registers.
    const uint64_t seed_here = device::not_before(seed);
    LLMJP_UNROLL
    for (int atom = 0; atom < kAtoms; ++atom) {
      const int query = first_query + atom * 16 + row_of_lane() + (odd ? 8 : 0);
      const int64_t row_position =
          (first_row + query) * words_of_row + first_key / 4 + device::lane_index() % 4 / 2;
      LLMJP_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        const device::Random4 drawn =
            device::philox(seed_here, offset, static_cast<uint64_t>(row_position + tile * 2));
        const uint32_t other0 = device::shuffle_xor(odd ? drawn.words[0] : drawn.words[2], 1);
        const uint32_t other1 = device::shuffle_xor(odd ? drawn.words[1] : drawn.words[3], 1);
        const uint32_t words[4] = {odd ? other0 : drawn.words[0], odd ? other1 : drawn.words[1],
                                   odd ? drawn.words[2] : other0, odd ? drawn.words[3] : other1};
        LLMJP_UNROLL
        for (int r = 0; r < 4; ++r) {
          if (device::to_uniform(words[r]) < share) probabilities[atom][tile][r] = 0.0f;
        }
      }
    }
  }
};

}  // namespace llmjp::attention
