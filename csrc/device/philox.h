// Philox4x32-10, a counter-based generator: the number at (seed, offset, position) can be drawn
// anywhere at any time, so a dropout mask is recomputed in backward instead of stored. Salmon et
// al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; the constants are the paper's.
#pragma once

#include "device/platform.h"

namespace llmjp::device {

struct Random4 {
  uint32_t words[4];
};

// 128 random bits for the counter (position, offset) under the key `seed`. Different counters are
// independent.
LLMJP_DEVICE Random4 philox(uint64_t seed, uint64_t offset, uint64_t position) {
  uint32_t key0 = static_cast<uint32_t>(seed);
  uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = static_cast<uint32_t>(position);
  uint32_t c1 = static_cast<uint32_t>(position >> 32);
  uint32_t c2 = static_cast<uint32_t>(offset);
  uint32_t c3 = static_cast<uint32_t>(offset >> 32);
  LLMJP_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xd2511f53u) * c0;
    const uint64_t product1 = static_cast<uint64_t>(0xcd9e8d57u) * c2;
    const uint32_t next0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    const uint32_t next2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    c0 = next0;
    c2 = next2;
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return {{c0, c1, c2, c3}};
}

// Uniform in [0, 1), 24 bits: every value is exact in float and 1 is never reached.
LLMJP_DEVICE float to_uniform(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

}  // namespace llmjp::device
