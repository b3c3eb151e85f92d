// Places in the scratch memory of attention's backward pass.
#pragma once

#include "attention/attention.h"
#include "attention/backward_tiles.h"
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

LLMJP_DEVICE int tiles_of_head(const AttentionBackward& p) {
  return (p.tokens + kBackwardQueries - 1) / kBackwardQueries;
}

}  // namespace llmjp::attention
