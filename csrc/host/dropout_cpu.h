// Dropout for native code of CPU tensors, with the masks of device/dropout.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "host/cpu_row.h"

namespace llmjp::host {

struct CpuDropout {
  bool drops;  // false: nothing is dropped, the rest does not matter
  uint64_t seed;
  uint64_t offset;
  float share;

  // `random` is {seed, offset}, or null without dropout.
  CpuDropout(const int64_t* random, float share_in)
      : drops(random != nullptr),
        seed(drops ? static_cast<uint64_t>(random[0]) : 0),
        offset(drops ? static_cast<uint64_t>(random[1]) : 0),
        share(share_in) {}
};

constexpr int kMaskBlock = 64;  // elements of a row that masks are drawn for at a time

// Draws the mask of kMaskBlock elements of a row, all bits set where one is kept; `position` is
// Philox' of the first.
void draw_mask(const CpuDropout& dropout, uint64_t position, uint32_t* mask);

// Calls visit(column, count, drop) for the vectors of a row; drop(values) is dropout of them.
template <class V, class Visit>
LLMJP_CPU_INLINE void for_vectors_with_dropout(const CpuDropout& dropout, int64_t row,
                                               int64_t width, Visit visit) {
  if (!dropout.drops) {
    for_vectors<V>(width, [&](int64_t i, auto count) __attribute__((always_inline)) {
      visit(i, count,
            [](typename V::Floats values) __attribute__((always_inline)) { return values; });
    });
    return;
  }
  const float scale = 1.0f / (1.0f - dropout.share);
  const int64_t position = row * ((width + 3) / 4);
  uint32_t mask[kMaskBlock];
  for (int64_t start = 0; start < width; start += kMaskBlock) {
    draw_mask(dropout, static_cast<uint64_t>(position + start / 4), mask);
    const auto block = [&](int64_t i, auto count) __attribute__((always_inline)) {
      visit(start + i, count, [&](typename V::Floats values) __attribute__((always_inline)) {
        return V::masked(values * scale, mask + i);
      });
    };
    for_vectors<V>(std::min<int64_t>(kMaskBlock, width - start), block);
  }
}

}  // namespace llmjp::host
