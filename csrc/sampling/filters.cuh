// top-k and top-p without a sort: both keep the values from some smallest one on, which is found by
// histograms, of counts or of weights, that narrow down where the running sum from the largest
// value reaches k, or the share p.
//
// First by bins of equal width below the largest value, then by the key (an integer in the values'
// order) from the smallest to the largest of the bin found, 2048 bins at a time until one is one
// key wide: exact, ties included. With 16-bit logits the first bin mostly holds a single value, and
// is done; float32 takes two steps more.
#pragma once

#include <cstdint>

#include "device/bits.h"
#include "device/math.h"
#include "device/platform.h"
#include "device/scan.h"
#include "device/shared.h"
#include "device/shared_atomic.h"
#include "sampling/histogram.cuh"
#include "sampling/row.cuh"
#include "sampling/weight.cuh"

namespace llmjp::sampling {

// Values that may be kept, and their ids, once there are few of them: 16 KB.
constexpr int kListed = 2048;

template <class X, int kThreads>
class Filters {
 public:
  static constexpr int kWarps = kThreads / device::kWarpSize;
  static constexpr int64_t kBytes = 4 * sizeof(uint32_t) + kListed * (sizeof(float) + sizeof(int));

  // `most` is the largest value of this thread.
  LLMJP_DEVICE Filters(const Row<X, kThreads>& row, const Weight& weight, float most, int classes,
                       Histogram<kThreads>& histogram, unsigned char* memory)
      : row_(row),
        weight_(weight),
        most_(most),
        classes_(classes),
        histogram_(histogram),
        listed_(reinterpret_cast<uint32_t*>(memory)),
        values_(reinterpret_cast<float*>(listed_ + 4)),
        ids_(reinterpret_cast<int*>(values_ + kListed)) {}

  // The smallest value that both keep.
  LLMJP_DEVICE float smallest_kept(float top_k, float top_p) {
    float smallest = kLowest;
    LLMJP_DO_NOT_UNROLL
    for (int filter = 0; filter < 2; ++filter) {
      by_weight_ = filter == 1;
      if (by_weight_ ? top_p < 1.0f : top_k >= 1.0f && top_k < static_cast<float>(classes_)) {
        const int last_bin = by_weight_ ? last_bin_of_share(top_p) : last_bin_of_count(top_k);
        smallest = narrow(smallest, last_bin, by_weight_ ? top_p : top_k);
      }
    }
    return smallest;
  }

  // Calls visit(value, id) for the values of the list, among which are all that both keep. False
  // where there is no list.
  template <class Visit>
  LLMJP_DEVICE bool for_each_listed(Visit visit) const {
    if (held_ < 0) return false;
    LLMJP_DO_NOT_UNROLL
    for (int i = device::thread_index(); i < held_; i += kThreads)
      visit(device::shared_load<float>(&values_[i]), device::shared_load<int>(&ids_[i]));
    return true;
  }

 private:
  static constexpr float kLowest = -3.402823466e38f;  // all but -inf

  // Nothing beyond this bin is in the top-p set: all of it together, at most `classes` ids of a
  // weight below that of the bin, has not half of what the set may lack. Half, because sums are
  // rounded.
  LLMJP_DEVICE int last_bin_of_share(float share) const {
    const float lacking = 1.0f - (share > 0.0f ? share : 0.0f);
    const float octaves =
        1.0f + device::natural_log(static_cast<float>(classes_) / lacking) * 1.4426950408889634f;
    const float bin = octaves * kBinsPerOctave + 1.0f;
    return bin < static_cast<float>(kLastBin) ? static_cast<int>(bin) : kLastBin;
  }

  // Nothing beyond this bin is in the top-k set: the threads' largest values alone have k before.
  LLMJP_DEVICE int last_bin_of_count(float count) {
    if (count > static_cast<float>(kThreads)) return kLastBin;
    histogram_.clear();
    if (most_ >= kLowest) histogram_.add(weight_.bin(most_), 1);
    const auto sums = histogram_.sums();
    const auto wanted = static_cast<uint64_t>(count);
    return sums.total < wanted ? kLastBin : histogram_.find(sums.before, wanted).bin;
  }

  LLMJP_DEVICE uint64_t amount_of(float value) const {
    return by_weight_ ? Weight::units(weight_.relative(value)) : 1;
  }

  // Calls ask(value) for all values, those of the list once there is one, and visit(value, id)
  // where the answer is true. Few values are visited, so that the code of a visit stands here once.
  // A thread for whose largest value `needed` is false reads nothing.
  template <class Ask, class Visit>
  LLMJP_DEVICE void for_each_value(bool needed, Ask ask, Visit visit) const {
    const auto visit_asked = [&](float value, int id) {
      if (ask(value)) visit(value, id);
    };
    if (for_each_listed(visit_asked)) return;
    constexpr int kChunk = Row<X, kThreads>::kChunk;
    row_.template for_each_chunk<1>(needed, [&](int chunk, int, const float (&values)[kChunk]) {
      uint32_t marks = 0;
      LLMJP_UNROLL
      for (int i = 0; i < kChunk; ++i) marks |= ask(values[i]) ? 1u << i : 0u;
      LLMJP_DO_NOT_UNROLL
      for (; marks != 0; marks &= marks - 1) {
        const int place = device::trailing_zeros(marks);
        visit(element_at(values, place), row_.id_of(chunk, place));
      }
    });
  }

  // Of the values from `smallest` on, those of bins up to last_bin being in question, the smallest
  // with which the sum from the largest on reaches a count, or a share of the sum of all.
  LLMJP_DEVICE float narrow(float smallest, int last_bin, float count_or_share) {
    device::sync_threads();  // the last count of the list has been read
    if (device::thread_index() == 0) device::shared_store(&listed_[0], 0u);
    histogram_.clear();
    const bool make_list = held_ < 0;
    bool room = make_list;
    uint64_t rest = 0;
    // A run of values of one bin is one addition: rows of equal logits would wait at one place.
    int run_bin = -1;
    uint64_t run = 0;
    for_each_value(
        most_ >= smallest && (by_weight_ || weight_.bin(most_) <= last_bin),
        [&](float value) {
          const bool asked = value >= smallest;
          const bool in_question = asked && weight_.bin(value) <= last_bin;
          if (asked && !in_question && by_weight_) rest += amount_of(value);
          return in_question;
        },
        [&](float value, int id) {
          const int bin = weight_.bin(value);
          if (bin != run_bin) {
            if (run_bin >= 0) histogram_.add(run_bin, run);
            run_bin = bin;
            run = 0;
          }
          run += amount_of(value);
          if (room) {
            const uint32_t place = device::shared_atomic_add(&listed_[0], 1u);
            room = place < kListed;
            if (room) {
              device::shared_store(&values_[place], value);
              device::shared_store(&ids_[place], id);
            }
          }
        });
    if (run_bin >= 0) histogram_.add(run_bin, run);
    const auto sums = histogram_.sums();
    if (make_list) {
      const auto listed = device::shared_load<uint32_t>(&listed_[0]);
      if (listed <= kListed) held_ = static_cast<int>(listed);
    }

    uint64_t wanted;
    if (by_weight_) {
      const uint64_t total = sums.total + sum_of_block(rest);
      wanted = static_cast<uint64_t>(__builtin_ceil(static_cast<double>(total) * count_or_share));
      wanted = wanted < 1 || !(count_or_share > 0.0f) ? 1 : wanted < total ? wanted : total;
    } else {
      wanted = static_cast<uint64_t>(count_or_share);
    }
    if (wanted > sums.total) return smallest;  // fewer than k
    Crossing crossing = histogram_.find(sums.before, wanted);

    // Where the bin begins and ends, as keys.
    uint32_t lowest = 0xffffffffu;
    uint32_t highest = 0;
    for_each_value(
        most_ >= smallest && weight_.bin(most_) <= crossing.bin,
        [&](float value) { return value >= smallest && weight_.bin(value) == crossing.bin; },
        [&](float value, int) {
          const uint32_t key = key_of(value);
          lowest = key < lowest ? key : lowest;
          highest = key > highest ? key : highest;
        });
    auto* scratch = reinterpret_cast<uint32_t*>(histogram_.scratch());
    lowest = device::block_reduce<kWarps>(
        lowest, 0xffffffffu, [](uint32_t a, uint32_t b) { return a < b ? a : b; }, scratch);
    highest = device::block_reduce<kWarps>(
        highest, 0u, [](uint32_t a, uint32_t b) { return a > b ? a : b; }, scratch);

    LLMJP_DO_NOT_UNROLL
    while (lowest < highest) {
      wanted -= crossing.before;
      const int bits = 32 - device::leading_zeros(highest - lowest);
      const int shift = bits > kBinBits ? bits - kBinBits : 0;
      histogram_.clear();
      const float from = value_of(lowest);
      const float to = value_of(highest);
      for_each_value(
          most_ >= from, [&](float value) { return value >= from && value <= to; },
          [&](float value, int) {
            const uint32_t below = highest - key_of(value);
            histogram_.add(static_cast<int>(below >> shift), amount_of(value));
          });
      crossing = histogram_.find(histogram_.sums().before, wanted);
      highest -= static_cast<uint32_t>(crossing.bin) << shift;
      const uint32_t width = (1u << shift) - 1u;
      if (highest - lowest > width) lowest = highest - width;
    }
    return value_of(lowest);
  }

  LLMJP_DEVICE uint64_t sum_of_block(uint64_t value) {
    return device::block_reduce<kWarps>(
        value, uint64_t{0}, [](uint64_t a, uint64_t b) { return a + b; }, histogram_.scratch());
  }

  const Row<X, kThreads>& row_;
  const Weight& weight_;
  float most_;
  int classes_;
  bool by_weight_ = false;
  int held_ = -1;  // how many the list holds, or -1: there is none
  Histogram<kThreads>& histogram_;
  // In shared memory:
  uint32_t* listed_;  // how many asked for a place in the list
  float* values_;     // [kListed]
  int* ids_;          // [kListed]
};

}  // namespace llmjp::sampling
