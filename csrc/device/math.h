// Arithmetic that a GPU has instructions for.
#pragma once

#include <cmath>

#include "device/platform.h"

namespace llmjp::device {

#if defined(__CUDACC__)

// Within 2 ulp (CUDA C++ Programming Guide, "Mathematical Functions").
LLMJP_DEVICE float reciprocal_sqrt(float value) { return rsqrtf(value); }

LLMJP_DEVICE float exp2_approx(float value) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

#else

inline float reciprocal_sqrt(float value) { return 1.0f / std::sqrt(value); }
inline float exp2_approx(float value) { return std::exp2(value); }

#endif

}  // namespace llmjp::device
