// What happens to a warp's transposed scores between the matrix products of the backward pass.
//
// A warp holds kᵀ's scores and dout · vᵀ as accumulators of m16n8k16, keys by queries: value
// [atom][tile][r] of a lane belongs to key 16 · atom + lane / 4 + 8 · (r / 2) and query 8 · tile +
// lane % 4 · 2 + r % 2.
#pragma once

#include <cmath>

#include "attention/attention.h"
#include "attention/scores.cuh"
#include "device/math.h"
#include "device/philox.h"
#include "device/schedule.h"
#include "device/shared.h"
#include "device/shuffle.h"
#include "device/thread.h"
#include "device/vector.h"

namespace llmjp::attention {

template <int kAtoms, int kTiles>
LLMJP_DEVICE void mask_transposed(float (&scores)[kAtoms][kTiles][4], const KeyRange& range,
                                  int tokens, int first_key, int first_query) {
  const int lane = device::lane_index_here();
  LLMJP_UNROLL
  for (int atom = 0; atom < kAtoms; ++atom) {
    LLMJP_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int key = first_key + atom * 16 + half * 8 + lane / 4;
      const bool exists = key >= range.first && key < range.last;
      const int low = exists ? range.first_query(key) - first_query - lane % 4 * 2 : 0;
      const int high = exists ? range.end_query(key, tokens) - first_query - lane % 4 * 2 : 0;
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

// The forward's dropout (scores.cuh) seen from the keys: the four keys of one Philox draw lie in
// four lanes, which need four queries' draws each. Every lane makes one of them, and words are
// exchanged like the elements of a 4 × 4 matrix that is transposed.
struct DropoutTransposed {
  uint64_t seed;
  uint64_t offset;
  int64_t first_row;  // of the sequence and head: where its lse begins
  int64_t words_of_row;
  float share;

  // Bit (atom · kTiles + tile) · 4 + r is set where value [atom][tile][r] is dropped.
  template <int kAtoms, int kTiles>
  LLMJP_DEVICE uint32_t dropped(int first_key, int first_query) const {
    static_assert(kAtoms * kTiles * 4 <= 32, "a bit for each value of a lane");
    const uint64_t seed_here = device::not_before(seed);
    const int lane = device::lane_index_here();
    const int turn = lane / 4 % 4;  // draws for query turn % 2, upper or lower keys
    const bool odd = turn % 2 != 0;
    const bool lower = turn / 2 != 0;
    const int query = first_query + lane % 4 * 2 + turn % 2;
    const int64_t column = first_key / 4 + lane / 16 + turn / 2 * 2;
    uint32_t bits = 0;
    LLMJP_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const int64_t row_position = (first_row + query + tile * 8) * words_of_row + column;
      LLMJP_UNROLL
      for (int atom = 0; atom < kAtoms; ++atom) {
        const device::Random4 drawn =
            device::philox(seed_here, offset, static_cast<uint64_t>(row_position + atom * 4));
        const uint32_t (&own)[4] = drawn.words;
        const uint32_t near0 = device::shuffle_xor(odd ? own[0] : own[1], 4);
        const uint32_t near1 = device::shuffle_xor(odd ? own[2] : own[3], 4);
        const uint32_t half[4] = {odd ? near0 : own[0], odd ? own[1] : near0, odd ? near1 : own[2],
                                  odd ? own[3] : near1};
        const uint32_t far0 = device::shuffle_xor(lower ? half[0] : half[2], 8);
        const uint32_t far1 = device::shuffle_xor(lower ? half[1] : half[3], 8);
        const uint32_t words[4] = {lower ? far0 : half[0], lower ? far1 : half[1],
                                   lower ? half[2] : far0, lower ? half[3] : far1};
        LLMJP_UNROLL
        for (int r = 0; r < 4; ++r) {
          const bool below = device::to_uniform(words[r]) < share;
          bits |= below ? 1u << ((atom * kTiles + tile) * 4 + r) : 0u;
        }
      }
    }
    return bits;
  }
};

// The two neighbouring queries of a lane, from `values` of a tile's queries.
LLMJP_DEVICE device::Vector<float, 2> of_queries(const float* values, int tile, int lane) {
  return device::shared_load<device::Vector<float, 2>>(values + tile * 8 + lane % 4 * 2);
}

// Softcap and ALiBi of raw products q · k, and what multiplies P in ds:
//   gradients = (kept · dout · vᵀ − delta) · (1 − tanh²)
template <int kAtoms, int kTiles>
LLMJP_DEVICE void apply_formulas_transposed(float (&scores)[kAtoms][kTiles][4],
                                            float (&gradients)[kAtoms][kTiles][4],
                                            const AttentionProblem& p, int shift,
                                            const float* delta, uint32_t dropped, float slope,
                                            int first_key, int first_query) {
  const int lane = device::lane_index_here();
  const float inverse_softcap = p.softcap > 0.0f ? 1.0f / p.softcap : 0.0f;
  const float kept = 1.0f / (1.0f - p.dropout);
  const int corner = first_query + column_of_lane() + shift - first_key - row_of_lane();
  LLMJP_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {
    const device::Vector<float, 2> deltas = of_queries(delta, tile, lane);
    LLMJP_UNROLL
    for (int atom = 0; atom < kAtoms; ++atom) {
      LLMJP_UNROLL
      for (int r = 0; r < 4; ++r) {
        float score = scores[atom][tile][r] * p.scale;
        const bool drop = dropped >> ((atom * kTiles + tile) * 4 + r) & 1u;
        float gradient = (drop ? 0.0f : gradients[atom][tile][r] * kept) - deltas.elements[r % 2];
        if (p.softcap > 0.0f) {
          const float tangent = tanh_approx(score * inverse_softcap);
          score = p.softcap * tangent;
          gradient *= 1.0f - tangent * tangent;
        }
        if (p.alibi != nullptr) {
          const int distance = corner + tile * 8 + r % 2 - atom * 16 - r / 2 * 8;
          score -= slope * std::fabs(static_cast<float>(distance));
        }
        scores[atom][tile][r] = score;
        gradients[atom][tile][r] = gradient;
      }
    }
  }
}

// scores become P, gradients become ds. In the general kernel the gradients have their delta, and P
// loses what is dropped.
template <bool kGeneral, int kAtoms, int kTiles>
LLMJP_DEVICE void finish_gradients(float (&scores)[kAtoms][kTiles][4],
                                   float (&gradients)[kAtoms][kTiles][4], float exponent_scale,
                                   const float* lse, const float* delta, uint32_t dropped) {
  const int lane = device::lane_index_here();
  LLMJP_UNROLL
  for (int tile = 0; tile < kTiles; ++tile) {
    const device::Vector<float, 2> lses = of_queries(lse, tile, lane);
    device::Vector<float, 2> deltas{};
    if constexpr (!kGeneral) deltas = of_queries(delta, tile, lane);
    LLMJP_UNROLL
    for (int atom = 0; atom < kAtoms; ++atom) {
      LLMJP_UNROLL
      for (int r = 0; r < 4; ++r) {
        float& score = scores[atom][tile][r];
        float& gradient = gradients[atom][tile][r];
        score = device::exp2_approx(score * exponent_scale - lses.elements[r % 2]);
        if constexpr (kGeneral) {
          gradient *= score;
          if (dropped >> ((atom * kTiles + tile) * 4 + r) & 1u) score = 0.0f;
        } else {
          gradient = score * (gradient - deltas.elements[r % 2]);
        }
      }
    }
  }
}

}  // namespace llmjp::attention
