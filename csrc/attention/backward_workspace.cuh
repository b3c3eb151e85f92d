// Places in the scratch memory of attention's backward pass.
#pragma once

#include "attention/attention.h"
#include "attention/backward_tiles.h"
#include "attention/packed_schedule.h"
#include "attention/sequences.cuh"
#include "device/platform.h"

namespace llmjp::attention {

// What belongs to a tile of queries.
template <int kHeadDim>
struct BackwardRecord {
  using Scratch = BackwardScratch<kHeadDim>;

  float* sums;

  LLMJP_DEVICE float* statistics() const { return sums + Scratch::kSums; }
  LLMJP_DEVICE int* turns() const {
    return reinterpret_cast<int*>(sums + Scratch::kSums + Scratch::kStatistics);
  }
};

template <int kHeadDim>
LLMJP_DEVICE BackwardRecord<kHeadDim> backward_record(float* workspace, int64_t tile) {
  using Scratch = BackwardScratch<kHeadDim>;
  return {workspace + Scratch::kFirstRecord + tile * Scratch::kRecord};
}

// Records of a head: of one sequence's, or of all packed ones'.
template <bool kPacked>
LLMJP_DEVICE int tiles_of_head(const AttentionBackward& p) {
  return kPacked ? static_cast<int>(packed_tiles(p.tokens, p.batch, kBackwardQueries))
                 : (p.tokens + kBackwardQueries - 1) / kBackwardQueries;
}

// A span of packed queries has its records from here on, in each head.
LLMJP_DEVICE int first_record_of_span(const AttentionBackward& p, int span) {
  return p.spans[span].first_token / kBackwardQueries + span;
}

// The record of a sequence's first tile of queries.
template <bool kPacked>
LLMJP_DEVICE int64_t first_record(const AttentionBackward& p, const Sequence<kPacked>& sequence,
                                  int head) {
  if constexpr (kPacked) {
    return int64_t{head} * tiles_of_head<true>(p) + sequence.first_token / kBackwardQueries +
           sequence.index + 1;
  } else {
    return (int64_t{sequence.index} * p.heads + head) * tiles_of_head<false>(p);
  }
}

}  // namespace llmjp::attention
