// A row of logits as a block reads it: in 16-byte chunks, NaN as -inf, the repetition penalty
// applied.
//
// Chunks lie on 16-byte boundaries; of the first and the last some elements may be outside the row:
// they read as -inf. Each warp has a run of neighbouring chunks, so that ids in warp order are in
// order.
#pragma once

#include <cstdint>

#include "device/bits.h"
#include "device/dtype.h"
#include "device/math.h"
#include "device/platform.h"
#include "device/shared.h"
#include "device/shared_atomic.h"
#include "device/thread.h"
#include "device/vector.h"

namespace llmjp::sampling {

constexpr float kInfinity = __builtin_huge_valf();

// values[place], by comparisons: with an index that is no constant they would not stay in
// registers.
template <int kCount>
LLMJP_DEVICE float element_at(const float (&values)[kCount], int place) {
  float value = values[0];
  LLMJP_UNROLL
  for (int i = 1; i < kCount; ++i) value = i == place ? values[i] : value;
  return value;
}

template <class X, int kThreads>
class Row {
 public:
  static constexpr int kChunk = device::kVectorElements<X>;
  static constexpr int kWarps = kThreads / device::kWarpSize;

  LLMJP_DEVICE Row(const X* logits, int classes) : logits_(logits), classes_(classes) {
    shift_ = static_cast<int>(reinterpret_cast<uintptr_t>(logits) % 16 / sizeof(X));
    const int chunks = (shift_ + classes + kChunk - 1) / kChunk;
    groups_ = (chunks + device::kWarpSize - 1) / device::kWarpSize;
    const int groups_of_warp = (groups_ + kWarps - 1) / kWarps;
    first_group_ = device::warp_index() * groups_of_warp;
    last_group_ = first_group_ + groups_of_warp < groups_ ? first_group_ + groups_of_warp : groups_;
  }

  // Words of shared memory that penalise() takes.
  static int64_t words_of_seen(int64_t classes) { return (classes + 2 * kChunk + 31) / 32; }

  // Marks the row's previous ids, once each however often they occur, and penalises them in all
  // that is read from now on.
  LLMJP_DEVICE void penalise(float penalty, const int64_t* previous, int64_t length,
                             uint32_t* seen) {
    const int words = (shift_ + classes_ + kChunk + 31) / 32;
    for (int i = device::thread_index(); i < words; i += kThreads)
      device::shared_store(&seen[i], 0u);
    device::sync_threads();
    for (int64_t i = device::thread_index(); i < length; i += kThreads) {
      const int64_t id = previous[i];
      if (id < 0 || id >= classes_) continue;
      const auto bit = static_cast<uint32_t>(id + shift_);
      device::shared_atomic_or(&seen[bit / 32], 1u << bit % 32);
    }
    device::sync_threads();
    penalty_ = penalty;
    seen_ = seen;
  }

  LLMJP_DEVICE int groups() const { return groups_; }

  // This lane's chunk of a group of 32, which a warp reads at once.
  LLMJP_DEVICE static int chunk_of(int group) {
    return group * device::kWarpSize + device::lane_index();
  }

  LLMJP_DEVICE int id_of(int chunk, int element) const { return chunk * kChunk - shift_ + element; }

  LLMJP_DEVICE int group_of(int id) const { return (id + shift_) / (kChunk * device::kWarpSize); }

  LLMJP_DEVICE void read(int chunk, float (&values)[kChunk]) const {
    finish(chunk, load(chunk), values);
  }

  // Calls visit(chunk, group, values) for all chunks of this lane, kUnroll loads being on their
  // way. Chunks that need not be read, and some behind the last, come as nothing but -inf.
  template <int kUnroll, class Visit>
  LLMJP_DEVICE void for_each_chunk(bool needed, Visit visit) const {
    const int last = needed ? last_group_ : 0;
    LLMJP_DO_NOT_UNROLL
    for (int group = first_group_; group < last_group_; group += kUnroll) {
      const auto chunk = [&](int u) { return group + u < last ? chunk_of(group + u) : kNoChunk; };
      device::Vector<X, kChunk> held[kUnroll];
      LLMJP_UNROLL
      for (int u = 0; u < kUnroll; ++u) held[u] = load(chunk(u));
      LLMJP_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        float values[kChunk];
        finish(chunk(u), held[u], values);
        visit(chunk(u), group + u, values);
      }
    }
  }

 private:
  static constexpr int kNoChunk = 1 << 24;  // behind kMostClasses ids

  // Ordinary loads: what fits stays in the first-level cache for the next time.
  LLMJP_DEVICE device::Vector<X, kChunk> load(int chunk) const {
    const int first = chunk * kChunk - shift_;
    if (first >= 0 && first + kChunk <= classes_)
      return device::load<device::Vector<X, kChunk>>(logits_ + first);
    device::Vector<X, kChunk> held;
    LLMJP_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      const int id = first + i;
      held.elements[i] = id >= 0 && id < classes_ ? logits_[id] : device::from_float<X>(-kInfinity);
    }
    return held;
  }

  LLMJP_DEVICE void finish(int chunk, const device::Vector<X, kChunk>& held,
                           float (&values)[kChunk]) const {
    device::to_floats(held, values);
    if (seen_ != nullptr) {
      const int bit = chunk * kChunk;
      uint32_t marks = 0;
      if (bit < shift_ + classes_)
        marks = device::shared_load<uint32_t>(&seen_[bit / 32]) >> bit % 32 & ((1u << kChunk) - 1);
      LLMJP_DO_NOT_UNROLL
      for (; marks != 0; marks &= marks - 1) {
        const int place = device::trailing_zeros(marks);
        float value = element_at(values, place);
        value = value < 0.0f ? value * penalty_ : value / penalty_;
        LLMJP_UNROLL
        for (int i = 0; i < kChunk; ++i) values[i] = i == place ? value : values[i];
      }
    }
    // A NaN loses against a number.
    LLMJP_UNROLL
    for (int i = 0; i < kChunk; ++i) values[i] = device::larger(values[i], -kInfinity);
  }

  const X* logits_;
  int classes_;
  int shift_;  // elements from the 16-byte boundary at or before the row to the row
  int groups_;
  int first_group_;  // of this warp
  int last_group_;
  float penalty_ = 1.0f;
  const uint32_t* seen_ = nullptr;  // a bit for each element, in shared memory
};

}  // namespace llmjp::sampling
