// float16 and bfloat16 as storage types: arithmetic is done in float. Own types rather than CUDA's,
// so that kernels compile where no toolkit is installed and nvcc reads a few lines instead of ten
// thousand.
#pragma once

#include <type_traits>

#include "device/platform.h"

#if defined(LLMJP_SIMT)
#include "simt/half.h"
#endif

namespace llmjp::device {

struct float16 {
  uint16_t bits;
};

struct bfloat16 {
  uint16_t bits;
};

LLMJP_DEVICE float to_float(float value) { return value; }

#if defined(__CUDACC__)

LLMJP_DEVICE float to_float(float16 value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

LLMJP_DEVICE float to_float(bfloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

// The two halves of a register, `low` first in memory; one instruction rounds both.
template <class T>
LLMJP_DEVICE uint32_t pack(float low, float high) {
  uint32_t result;
  if constexpr (std::is_same_v<T, float16>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  } else {
    static_assert(std::is_same_v<T, bfloat16>, "pack makes float16 or bfloat16 pairs");
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  }
  return result;
}

template <class T>
LLMJP_DEVICE T from_float(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else {
    T result;
    if constexpr (std::is_same_v<T, float16>) {
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    } else {
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    }
    return result;
  }
}

#else

inline float to_float(float16 value) { return simt::float16_to_float(value.bits); }
inline float to_float(bfloat16 value) { return simt::bfloat16_to_float(value.bits); }

template <class T>
T from_float(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else if constexpr (std::is_same_v<T, float16>) {
    return {simt::float_to_float16(value)};
  } else {
    return {simt::float_to_bfloat16(value)};
  }
}

template <class T>
uint32_t pack(float low, float high) {
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}

#endif

}  // namespace llmjp::device
