// Arithmetic that a GPU has instructions for.
#pragma once

#include <cmath>

#include "device/platform.h"

namespace llmjp::device {

#if defined(__CUDACC__)

// One instruction; a NaN loses against a number.
LLMJP_DEVICE float larger(float a, float b) { return fmaxf(a, b); }

// Within 2 ulp (CUDA C++ Programming Guide, "Mathematical Functions").
LLMJP_DEVICE float reciprocal_sqrt(float value) { return rsqrtf(value); }

LLMJP_DEVICE float exp2_approx(float value) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

// Within 1 ulp; 1 / infinity is 0.
LLMJP_DEVICE float reciprocal_approx(float value) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

// Within 2, 1 and 2 ulp (the same guide).
LLMJP_DEVICE float exponential(float value) { return expf(value); }
LLMJP_DEVICE float natural_log(float value) { return logf(value); }
LLMJP_DEVICE float error_function(float value) { return erff(value); }

#else

inline float larger(float a, float b) { return std::fmax(a, b); }
inline float reciprocal_sqrt(float value) { return 1.0f / std::sqrt(value); }
inline float exp2_approx(float value) { return std::exp2(value); }
inline float reciprocal_approx(float value) { return 1.0f / value; }
inline float exponential(float value) { return std::exp(value); }
inline float natural_log(float value) { return std::log(value); }
inline float error_function(float value) { return std::erf(value); }

#endif

}  // namespace llmjp::device
