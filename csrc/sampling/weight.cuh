// Weights of ids as integers, and the order of logits as integers.
//
// exp((x − max) / T) is kept in units of 2^-40, cut off to whole ones. Sums of integers do not
// depend on their order: the filters and the draw come out the same however the work is shared out,
// atomics included, and the id that a number below the sum belongs to always exists. What is cut
// off is below 2^-40 of the largest weight for each id, a float's rounding of the sum for 2^17 ids.
// 2^23 ids do not overflow 64 bits.
#pragma once

#include <cstdint>

#include "device/bits.h"
#include "device/math.h"
#include "device/platform.h"
#include "sampling/row.cuh"

namespace llmjp::sampling {

// Bins of a histogram. The first ones hold the largest logits.
constexpr int kBins = 2048;
constexpr int kBinBits = 11;
constexpr float kBinsPerOctave = 48.0f;  // 2048 / 48 = 42.7 octaves: all that has a weight
constexpr int kLastBin = kBins - 1;      // and all below

struct Weight {
  float largest;
  float octaves;  // log2(e) / T: octaves of weight in a unit of logit

  LLMJP_DEVICE Weight(float largest, float temperature) : largest(largest) {
    // Neither 0 nor infinite: infinities times it would be NaN.
    const float scale = 1.4426950408889634f / temperature;
    octaves = scale < 1e38f ? (scale > 1e-37f ? scale : 1e-37f) : 1e38f;
  }

  // log2 of the weight; infinity − infinity would be NaN.
  LLMJP_DEVICE float exponent(float value) const {
    return value == largest ? 0.0f : (value - largest) * octaves;
  }

  LLMJP_DEVICE float relative(float value) const { return device::exp2_approx(exponent(value)); }

  LLMJP_DEVICE static uint64_t units(float relative) {
    return static_cast<uint64_t>(relative * 0x1p40f);
  }

  // None of its steps changes the order of two values.
  LLMJP_DEVICE int bin(float value) const {
    const float place = -exponent(value) * kBinsPerOctave;
    return place < static_cast<float>(kLastBin) ? static_cast<int>(place) : kLastBin;
  }
};

// Larger values have larger keys, equal ones (0 and −0 too) the same.
LLMJP_DEVICE uint32_t key_of(float value) {
  const uint32_t bits = device::bits_of(value + 0.0f);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

LLMJP_DEVICE float value_of(uint32_t key) {
  return device::float_of(key >> 31 != 0 ? key & 0x7fffffffu : ~key);
}

}  // namespace llmjp::sampling
