// The sampling kernel: one block a row. Formulas: sample.h.
//
// Bytes: the logits are read from memory once, 101 KB for a row of 50,688 bfloat16; what is read
// again (twice with a filter, once without) comes from the first-level cache where the row fits it,
// else from the second. A row is little work for a GPU: what counts is the time from the first load
// to the id, so that a row has as many threads as a block may have, and few barriers.
#pragma once

#include <cstdint>

#include "device/bits.h"
#include "device/philox.h"
#include "device/scan.h"
#include "device/shared.h"
#include "sampling/filters.cuh"
#include "sampling/histogram.cuh"
#include "sampling/row.cuh"
#include "sampling/sample.h"
#include "sampling/weight.cuh"

namespace llmjp::sampling {

// As for cross-entropy: up to 8 KB a row has too little work for many threads.
constexpr int kShortRowBytes = 8192;
constexpr int kShortRowThreads = 128;
constexpr int kLongRowThreads = 1024;

// 64 registers a thread.
template <int kThreads>
constexpr int kBlocks = 1024 / kThreads;

// Loads on their way at a time when the row comes from memory: 64 KB of a block of 1024.
constexpr int kUnroll = 3;

// Shared memory besides the bits of previous ids.
template <class X, int kThreads>
constexpr int64_t kSharedBytes = Histogram<kThreads>::kBytes + Filters<X, kThreads>::kBytes;

// The id whose part of the running sum of kept weights holds a uniform share of the sum.
// `kept_units` gives a value's weight, 0 for one that is not kept. First the group of 256 or 128
// neighbouring ids (several, for more than 2048 groups), by a histogram over them; then one warp
// reads it again.
template <class X, int kThreads, class Units>
LLMJP_DEVICE void draw(const Row<X, kThreads>& row, const Filters<X, kThreads>& filters,
                       Histogram<kThreads>& histogram, bool needed, uint64_t uniform,
                       Units kept_units, int64_t* id) {
  constexpr int kChunk = Row<X, kThreads>::kChunk;
  int shift = 0;
  while ((row.groups() - 1) >> shift >= kBins) ++shift;
  histogram.clear();
  const bool listed = filters.for_each_listed([&](float value, int listed_id) {
    const uint64_t units = kept_units(value);
    if (units != 0) histogram.add(row.group_of(listed_id) >> shift, units);
  });
  const int lane = device::lane_index();
  if (!listed) {
    row.template for_each_chunk<1>(needed, [&](int, int group, const float (&values)[kChunk]) {
      uint64_t sum = 0;
      LLMJP_UNROLL
      for (int i = 0; i < kChunk; ++i) sum += kept_units(values[i]);
      sum = device::warp_reduce(sum, [](uint64_t a, uint64_t b) { return a + b; });
      if (lane == 0 && sum != 0) histogram.add(group >> shift, sum);
    });
  }
  const auto sums = histogram.sums();
  uint64_t wanted = device::multiply_high(uniform, sums.total);
  const Crossing crossing = histogram.find(sums.before, wanted + 1);
  if (device::warp_index() != 0) return;
  wanted -= crossing.before;

  LLMJP_DO_NOT_UNROLL
  for (int group = crossing.bin << shift; group < row.groups(); ++group) {
    const int chunk = row.chunk_of(group);
    float values[kChunk];
    row.read(chunk, values);
    uint64_t mine = 0;
    LLMJP_UNROLL
    for (int i = 0; i < kChunk; ++i) mine += kept_units(values[i]);
    const uint64_t up_to_lane = device::warp_running_sum(mine);
    const uint32_t passed = device::ballot(up_to_lane > wanted);
    if (passed != 0) {
      if (lane == device::trailing_zeros(passed)) {
        uint64_t up_to_element = up_to_lane - mine;
        int element = 0;
        LLMJP_UNROLL
        for (int i = 0; i < kChunk; ++i) {
          up_to_element += kept_units(values[i]);
          element += up_to_element <= wanted ? 1 : 0;
        }
        *id = row.id_of(chunk, element);
      }
      return;
    }
    wanted -= device::shuffle(up_to_lane, device::kWarpSize - 1);
  }
}

template <class X, int kThreads>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kThreads, kBlocks<kThreads>) sample_kernel(Sample p) {
  constexpr int kChunk = Row<X, kThreads>::kChunk;
  constexpr int kWarps = kThreads / device::kWarpSize;
  const int64_t row_index = device::block_index_x();
  const auto of_row = [&](Setting setting) {
    return setting.by_row == nullptr ? setting.number : setting.by_row[row_index];
  };
  auto* memory = device::dynamic_shared<unsigned char>();
  Histogram<kThreads> histogram(memory);

  Row<X, kThreads> row(static_cast<const X*>(p.logits) + row_index * p.row_stride,
                       static_cast<int>(p.classes));
  const float penalty = of_row(p.repetition_penalty);
  if (p.previous_length > 0 && penalty != 1.0f) {
    row.penalise(penalty, p.previous + row_index * p.previous_stride, p.previous_length,
                 reinterpret_cast<uint32_t*>(memory + kSharedBytes<X, kThreads>));
  }

  // Each thread's largest value and the first chunk that has it.
  float most = -kInfinity;
  int place = 0;
  row.template for_each_chunk<kUnroll>(true, [&](int chunk, int, const float (&values)[kChunk]) {
    float most_here = values[0];
    LLMJP_UNROLL
    for (int i = 1; i < kChunk; ++i) most_here = device::larger(most_here, values[i]);
    if (most_here > most) {
      most = most_here;
      place = chunk;
    }
  });
  const float largest = device::block_reduce<kWarps>(
      most, -kInfinity, [](float a, float b) { return a > b ? a : b; },
      reinterpret_cast<float*>(histogram.scratch()));
  int64_t* id = p.ids + row_index;
  if (largest == -kInfinity) {
    if (device::thread_index() == 0) *id = -1;
    return;
  }
  // A temperature that is no positive number is taken for 0: nothing sensible can be drawn.
  const float temperature = of_row(p.temperature);
  if (!(temperature > 0.0f)) {
    constexpr int kNone = 0x7fffffff;
    int first = kNone;
    if (most == largest) {
      float values[kChunk];
      row.read(place, values);
      LLMJP_UNROLL
      for (int i = kChunk - 1; i >= 0; --i)
        if (values[i] == largest) first = row.id_of(place, i);
    }
    first = device::block_reduce<kWarps>(
        first, kNone, [](int a, int b) { return a < b ? a : b; },
        reinterpret_cast<int*>(histogram.scratch()));
    if (device::thread_index() == 0) *id = first;
    return;
  }

  const Weight weight(largest, temperature);
  Filters<X, kThreads> filters(row, weight, most, static_cast<int>(p.classes), histogram,
                               memory + Histogram<kThreads>::kBytes);
  const float smallest =
      largest == kInfinity ? kInfinity : filters.smallest_kept(of_row(p.top_k), of_row(p.top_p));
  // The largest is kept whatever min_p is.
  const float min_p = of_row(p.min_p);
  const float least = min_p < 1.0f ? min_p : 1.0f;
  const auto kept_units = [&](float value) -> uint64_t {
    if (!(value >= smallest)) return 0;
    const float relative = weight.relative(value);
    return relative < least ? 0 : Weight::units(relative);
  };
  const auto drawn =
      device::philox(static_cast<uint64_t>(p.random_state[0]),
                     static_cast<uint64_t>(p.random_state[1]), static_cast<uint64_t>(row_index));
  // A fraction of 64 bits, of which 53 are drawn.
  const uint64_t uniform =
      uint64_t{drawn.words[0]} << 32 | (uint64_t{drawn.words[1]} & 0xfffff800u);
  draw(row, filters, histogram, most >= smallest, uniform, kept_units, id);
}

}  // namespace llmjp::sampling
