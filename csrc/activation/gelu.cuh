// GELU and its derivative at one point. Formulas: bias_gelu.h.
#pragma once

#include "device/math.h"

namespace llmjp::activation {

constexpr float kInverseSqrt2 = 0.70710678f;
constexpr float kInverseSqrt2Pi = 0.39894228f;  // 1 / √(2π)
constexpr float kLog2E = 1.44269504f;
constexpr float kTwiceSqrt2OverPi = 1.59576912f;  // 2 · √(2/π)
constexpr float kCubic = 0.044715f;

// exp(−2z) of the tanh approximation: y = u / (1 + it), from infinity to 0.
LLMJP_DEVICE float gelu_exponential(float u) {
  return device::exp2_approx(-kLog2E * (kTwiceSqrt2OverPi * (u + kCubic * u * u * u)));
}

// Φ(u)
LLMJP_DEVICE float normal_share(float u) {
  return 0.5f + 0.5f * device::error_function(u * kInverseSqrt2);
}

template <bool kTanh>
LLMJP_DEVICE float gelu(float u) {
  if constexpr (kTanh) {
    return u * device::reciprocal_approx(1.0f + gelu_exponential(u));
  } else {
    return u * normal_share(u);
  }
}

template <bool kTanh>
LLMJP_DEVICE float gelu_derivative(float u) {
  if constexpr (kTanh) {
    const float exponential = gelu_exponential(u);
    const float share = device::reciprocal_approx(1.0f + exponential);
    // As a product, since 1 − share cancels where the share is near 1; an infinite exponential's
    // share is 0.
    const float rest = exponential < 1e38f ? exponential * share : 1.0f;
    const float slope = kTwiceSqrt2OverPi * (1.0f + 3.0f * kCubic * u * u);
    // The slope overflows where u does when squared, long after the bell has become 0.
    const float bell = share * rest;
    return bell == 0.0f ? share : share + u * bell * slope;
  } else {
    const float density = kInverseSqrt2Pi * device::exp2_approx(-0.5f * kLog2E * u * u);
    return normal_share(u) + u * density;
  }
}

}  // namespace llmjp::activation
