// Where a block's sequence lies: in a batch of sequences of one length, or among packed ones.
#pragma once

#include "attention/attention.h"
#include "attention/packed_schedule.h"
#include "attention/tiles.h"
#include "device/bits.h"
#include "device/shuffle.h"
#include "device/thread.h"
#include "device/vector.h"

namespace llmjp::attention {

// A sequence's part of each tensor. Cheap to work out again, in a loop that needs the registers.
template <bool kPacked>
struct Sequence {
  int index;  // in the batch; −1 and batch are the packed rows that belong to no sequence
  int tokens;
  int keys;
  int first_token;  // where packed
  int first_key;

  // A head of q or of what is shaped like it.
  template <class T>
  LLMJP_DEVICE const T* queries(const void* matrix, const Strides& strides, int head) const {
    const int64_t first = kPacked ? first_token * strides.token : index * strides.batch;
    return static_cast<const T*>(matrix) + first + head * strides.head;
  }
  // A head of k or v.
  template <class T>
  LLMJP_DEVICE const T* key_rows(const void* matrix, const Strides& strides, int kv_head) const {
    const int64_t first = kPacked ? first_key * strides.token : index * strides.batch;
    return static_cast<const T*>(matrix) + first + kv_head * strides.head;
  }

  // Its first row in contiguous outputs shaped as q, and as k.
  LLMJP_DEVICE int64_t query_row() const { return kPacked ? first_token : int64_t{index} * tokens; }
  LLMJP_DEVICE int64_t key_row() const { return kPacked ? first_key : int64_t{index} * keys; }

  // Place of query 0 of a head in lse.
  LLMJP_DEVICE int64_t lse_row(const AttentionProblem& p, int head) const {
    return kPacked ? int64_t{head} * p.tokens + first_token
                   : (int64_t{index} * p.heads + head) * tokens;
  }

  LLMJP_DEVICE bool sees_keys(const AttentionProblem& p) const {
    return !kPacked || (index >= 0 && index < p.batch);
  }
};

template <bool kPacked>
LLMJP_DEVICE Sequence<kPacked> sequence_at(const AttentionProblem& p, int index) {
  if constexpr (kPacked) {
    const Span span = device::load<Span>(p.spans + index + 1);
    return {index, span.tokens, span.keys, span.first_token, span.first_key};
  } else {
    return {index, p.tokens, p.keys, 0, 0};
  }
}

// A sequence and one of its heads, from their common number (BlockPlace).
template <bool kPacked>
struct HeadPlace {
  int sequence;
  int head;

  LLMJP_DEVICE HeadPlace(int number, int heads)
      : sequence(number / heads), head(number - sequence * heads) {
    if constexpr (kPacked) --sequence;  // spans are numbered from 0
  }
};

// The last index below `count` whose value is at most `value`, by all lanes of a warp together. The
// values ascend, the first is at most `value`.
template <class ValueAt>
LLMJP_DEVICE int last_at_most(int value, int count, ValueAt value_at) {
  int first = 0;
  while (count > 1) {
    const int step = (count + device::kWarpSize - 1) / device::kWarpSize;
    const int place = device::lane_index() * step;
    const uint32_t passed = device::ballot(place < count && value_at(first + place) <= value);
    const int steps = device::count_ones(passed | 1u) - 1;
    first += steps * step;
    count = count - steps * step < step ? count - steps * step : step;
  }
  return first;
}

// What the block of an index works on. Row block −1: nothing is left for it.
LLMJP_DEVICE BlockPlace block_place(const Schedule& schedule, int, int index) {
  return block_place(schedule, index);
}

template <bool kByKeys>
LLMJP_DEVICE BlockPlace block_place(const PackedSchedule<kByKeys>& schedule, int heads, int index) {
  const int tile = index / heads;
  if (tile >= schedule.first_tiles[schedule.span_count]) return {0, -1};
  const int rank = last_at_most(tile, schedule.span_count,
                                [&](int place) { return schedule.first_tiles[place]; });
  const int span = schedule.order[rank];
  const int first_tile = schedule.first_tiles[rank];
  const int rows = kByKeys ? schedule.spans[span].keys : schedule.spans[span].tokens;
  const int together = schedule.cached_rows / (rows > 1 ? rows : 1) * schedule.section_heads;
  Schedule own{};
  own.row_blocks = schedule.first_tiles[rank + 1] - first_tile;
  own.head_count = heads;
  own.heads_per_section = together < schedule.section_heads ? schedule.section_heads
                          : together < heads                ? together
                                                            : heads;
  const BlockPlace place = block_place(own, index - first_tile * heads);
  return {span * heads + place.head, place.row_block};
}

// Whether a schedule is of packed sequences.
template <class Order>
constexpr bool kIsPacked = false;
template <bool kByKeys>
constexpr bool kIsPacked<PackedSchedule<kByKeys>> = true;

}  // namespace llmjp::attention
