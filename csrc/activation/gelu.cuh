// GELU and its derivative at one point. Formulas: bias_gelu.h.
#pragma once

#include <type_traits>

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

// Φ(u) for X, the type of rows. With 16 bits an element the error function's instructions would
// take longer than memory. There it is 2^(−a · s(a)) / 2 where a = −u is positive, and 1 less that
// with a = u on the other side; the polynomial s leaves the power within 2e-5 of itself up to a
// = 5.5, where it is 2e-8, and lets it vanish beyond.
template <class X>
LLMJP_DEVICE float normal_share(float u) {
  if constexpr (std::is_same_v<X, float>) {
    return 0.5f + 0.5f * device::error_function(u * kInverseSqrt2);
  } else {
    const float a = __builtin_fabsf(u);
    float s = 1.73320802e-06f;
    s = s * a - 5.96397585e-05f;
    s = s * a + 9.15785029e-04f;
    s = s * a - 8.45283829e-03f;
    s = s * a + 5.38529716e-02f;
    s = s * a + 4.58568066e-01f;
    s = s * a + 1.15120852e+00f;
    const float tail = device::exp2_approx(-a * s - 1.0f);
    return u > 0.0f ? 1.0f - tail : tail;
  }
}

template <class X, bool kTanh>
LLMJP_DEVICE float gelu(float u) {
  if constexpr (kTanh) {
    return u * device::reciprocal_approx(1.0f + gelu_exponential(u));
  } else {
    return u * normal_share<X>(u);
  }
}

template <class X, bool kTanh>
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
    return normal_share<X>(u) + u * density;
  }
}

}  // namespace llmjp::activation
