// Integers: the bits of a float, counting zeros and ones, wide products.
#pragma once

#include <bit>
#include <cstring>

#include "device/platform.h"

namespace llmjp::device {

#if defined(__CUDACC__)

// The upper 64 of the 128 bits of a · b.
LLMJP_DEVICE uint64_t multiply_high(uint64_t a, uint64_t b) { return __umul64hi(a, b); }

// Of a value that is not 0.
LLMJP_DEVICE int leading_zeros(uint32_t value) { return __clz(static_cast<int>(value)); }
LLMJP_DEVICE int trailing_zeros(uint32_t value) { return __ffs(static_cast<int>(value)) - 1; }

LLMJP_DEVICE int count_ones(uint32_t value) { return __popc(value); }

#else

inline uint64_t multiply_high(uint64_t a, uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<uint64_t>(Wide{a} * b >> 64);
}
inline int leading_zeros(uint32_t value) { return std::countl_zero(value); }
inline int trailing_zeros(uint32_t value) { return std::countr_zero(value); }
inline int count_ones(uint32_t value) { return std::popcount(value); }

#endif

LLMJP_DEVICE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}
LLMJP_DEVICE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace llmjp::device
