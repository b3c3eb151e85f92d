// The logistic function of several numbers at a time.
#pragma once

#include "host/cpu_vector.h"

namespace llmjp::activation {

// 1 / (1 + exp(x)), and the rest to 1.
template <class V>
struct Logistic {
  typename V::Floats share;
  typename V::Floats rest;
};

template <class V>
LLMJP_CPU_INLINE Logistic<V> logistic(typename V::Floats x) {
  using Floats = typename V::Floats;
  constexpr float kMost = 87.0f;  // exp() takes no more
  const Floats exponential = V::exp(x > kMost ? V::splat(kMost) : x);
  const Floats share = 1.0f / (1.0f + exponential);
  // As a product, since 1 − share cancels where the share is near 1.
  const Floats rest = exponential * share;
  return {x > kMost ? Floats{} : share, x > kMost ? V::splat(1.0f) : rest};
}

}  // namespace llmjp::activation
