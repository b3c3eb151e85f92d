// Dropout of rows: element j of row i is dropped where word j % 4 of Philox at position
// i · ⌈width / 4⌉ + j / 4 falls below the share; the others are scaled by 1 / (1 − share).
#pragma once

#include <cstdint>

#include "device/philox.h"
#include "device/platform.h"
#include "device/schedule.h"

namespace llmjp::device {

struct Dropout {
  uint64_t seed;
  uint64_t offset;
  float share;
  float scale;

  // `random` is {seed, offset}.
  LLMJP_DEVICE Dropout(const int64_t* random, float share)
      : seed(static_cast<uint64_t>(random[0])),
        offset(static_cast<uint64_t>(random[1])),
        share(share),
        scale(1.0f / (1.0f - share)) {}

  LLMJP_DEVICE static int64_t row_position(int64_t row, int64_t width) {
    return row * ((width + 3) / 4);
  }

  // To the elements from `column` on of the row at `position`; column is a multiple of four, or
  // there is one element.
  template <int kCount>
  LLMJP_DEVICE void apply(int64_t position, int64_t column, float (&values)[kCount]) const {
    static_assert(kCount == 1 || kCount % 4 == 0);
    // The keys of Philox' ten rounds follow from the seed: twenty registers, were they kept.
    const uint64_t seed_here = not_before(seed);
    LLMJP_UNROLL
    for (int first = 0; first < kCount; first += 4) {
      const Random4 drawn =
          philox(seed_here, offset, static_cast<uint64_t>(position + (column + first) / 4));
      if constexpr (kCount == 1) {
        const int word = static_cast<int>(column % 4);
        const uint32_t low = word == 0 ? drawn.words[0] : drawn.words[1];
        const uint32_t high = word == 2 ? drawn.words[2] : drawn.words[3];
        values[0] = to_uniform(word < 2 ? low : high) < share ? 0.0f : values[0] * scale;
      } else {
        LLMJP_UNROLL
        for (int i = 0; i < 4; ++i) {
          const bool dropped = to_uniform(drawn.words[i]) < share;
          values[first + i] = dropped ? 0.0f : values[first + i] * scale;
        }
      }
    }
  }
};

}  // namespace llmjp::device
