// A histogram in shared memory of 64-bit amounts, and the bin in which their running sum reaches a
// number.
#pragma once

#include <cstdint>

#include "device/platform.h"
#include "device/scan.h"
#include "device/shared.h"
#include "device/shared_atomic.h"
#include "device/thread.h"
#include "sampling/weight.cuh"

namespace llmjp::sampling {

// Where a running sum reaches a number: `before` is the sum of the bins before.
struct Crossing {
  int bin;
  uint64_t before;
};

template <int kThreads>
class Histogram {
 public:
  static constexpr int kWarps = kThreads / device::kWarpSize;
  static constexpr int kBinsOfThread = kBins / kThreads;
  static_assert(kBins % kThreads == 0);
  static constexpr int64_t kBytes = (2 + kWarps) * sizeof(uint64_t) + 2 * kBins * sizeof(uint32_t);

  LLMJP_DEVICE explicit Histogram(unsigned char* memory)
      : crossing_(reinterpret_cast<uint64_t*>(memory)),
        scratch_(crossing_ + 2),
        low_(reinterpret_cast<uint32_t*>(scratch_ + kWarps)),
        high_(low_ + kBins) {}

  // For block_reduce and the like, between uses of the histogram.
  LLMJP_DEVICE uint64_t* scratch() { return scratch_; }

  // For all threads of the block; so are the following but add(). Their order is clear(), add(),
  // sums() and perhaps find(): each ends its reading with a barrier, so that none has to begin with
  // one for the sake of the one before.
  LLMJP_DEVICE void clear() {
    LLMJP_UNROLL
    for (int i = 0; i < kBinsOfThread; ++i) {
      device::shared_store(&low_[i * kThreads + device::thread_index()], 0u);
      device::shared_store(&high_[i * kThreads + device::thread_index()], 0u);
    }
    device::sync_threads();
  }

  // There is no 64-bit atomic addition to shared memory. Which addition carries depends on their
  // order, how many do does not.
  LLMJP_DEVICE void add(int bin, uint64_t amount) {
    const auto low = static_cast<uint32_t>(amount);
    const uint32_t old = device::shared_atomic_add(&low_[bin], low);
    const uint32_t high = static_cast<uint32_t>(amount >> 32) + (old + low < old ? 1u : 0u);
    if (high != 0) device::shared_atomic_add(&high_[bin], high);
  }

  // The sum of all bins, and in `before` that of the bins before this thread's.
  LLMJP_DEVICE device::BlockSum<uint64_t> sums() {
    device::sync_threads();
    uint64_t mine = 0;
    LLMJP_UNROLL
    for (int i = 0; i < kBinsOfThread; ++i) mine += bin_of_thread(i);
    return device::block_running_sum<kWarps>(mine, scratch_);
  }

  // The first bin with which the sum reaches `wanted`, from 1 to the sum of all.
  LLMJP_DEVICE Crossing find(uint64_t before, uint64_t wanted) {
    LLMJP_UNROLL
    for (int i = 0; i < kBinsOfThread; ++i) {
      const uint64_t amount = bin_of_thread(i);
      if (before < wanted && wanted - before <= amount) {
        const int bin = device::thread_index() * kBinsOfThread + i;
        device::shared_store(&crossing_[0], static_cast<uint64_t>(bin));
        device::shared_store(&crossing_[1], before);
      }
      before += amount;
    }
    device::sync_threads();
    return {static_cast<int>(device::shared_load<uint64_t>(&crossing_[0])),
            device::shared_load<uint64_t>(&crossing_[1])};
  }

 private:
  LLMJP_DEVICE uint64_t bin_of_thread(int i) const {
    const int bin = device::thread_index() * kBinsOfThread + i;
    return uint64_t{device::shared_load<uint32_t>(&high_[bin])} << 32 |
           device::shared_load<uint32_t>(&low_[bin]);
  }

  uint64_t* crossing_;
  uint64_t* scratch_;  // [kWarps]
  uint32_t* low_;      // [kBins], and the upper halves of the same bins:
  uint32_t* high_;
};

}  // namespace llmjp::sampling
