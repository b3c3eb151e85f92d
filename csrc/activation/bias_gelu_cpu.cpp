#include "activation/bias_gelu_cpu.h"

#include "activation/logistic_cpu.h"
#include "host/cpu_dispatch.h"

namespace llmjp::activation {
namespace {

constexpr float kTwiceSqrt2OverPi = 1.59576912f;  // 2 · √(2/π)
constexpr float kCubic = 0.044715f;
constexpr float kInverseSqrt2Pi = 0.39894228f;

// Φ(u). With a = |u| it is ½ · exp(−a · s(a)) on the left and 1 less that on the right; s is a
// polynomial whose error leaves Φ within 8e-9 of the truth up to 6, where Φ(−6) = 1e-9 ends it.
template <class V>
LLMJP_CPU_INLINE typename V::Floats normal_share(typename V::Floats u) {
  using Floats = typename V::Floats;
  constexpr float kMost = 6.0f;
  const Floats a = u < 0.0f ? -u : u;
  const Floats bounded = a < kMost ? a : V::splat(kMost);
  Floats s = bounded * 0x1.07bc4cp-19f - 0x1.c9ebc6p-16f;
  s = s * bounded + 0x1.0ea2a4p-13f;
  s = s * bounded + 0x1.8e1f26p-14f;
  s = s * bounded - 0x1.40dd1cp-8f;
  s = s * bounded + 0x1.2a1648p-5f;
  s = s * bounded + 0x1.45f024p-2f;
  s = s * bounded + 0x1.98846cp-1f;
  const Floats half = 0.5f * V::exp(-bounded * s);
  const Floats tail = a > kMost ? Floats{} : half;
  return u > 0.0f ? 1.0f - tail : tail;
}

// 2z of the tanh approximation, negative.
template <class V>
LLMJP_CPU_INLINE typename V::Floats exponent(typename V::Floats u) {
  return u * (-kTwiceSqrt2OverPi - kTwiceSqrt2OverPi * kCubic * u * u);
}

template <class V, bool kTanh>
LLMJP_CPU_INLINE typename V::Floats gelu(typename V::Floats u) {
  if constexpr (kTanh) return u * logistic<V>(exponent<V>(u)).share;
  return u * normal_share<V>(u);
}

template <class V, bool kTanh>
LLMJP_CPU_INLINE typename V::Floats gelu_derivative(typename V::Floats u) {
  using Floats = typename V::Floats;
  if constexpr (kTanh) {
    const Logistic<V> at = logistic<V>(exponent<V>(u));
    const Floats slope = kTwiceSqrt2OverPi + 3.0f * kCubic * kTwiceSqrt2OverPi * u * u;
    // The slope overflows where u does when squared, long after the bell has become 0.
    const Floats bell = at.share * at.rest;
    return bell == 0.0f ? at.share : at.share + u * bell * slope;
  } else {
    return normal_share<V>(u) + u * (kInverseSqrt2Pi * V::exp(-0.5f * u * u));
  }
}

template <class V, bool kTanh, class X>
LLMJP_CPU_INLINE void forward(const X* x, const float* bias, X* y, int64_t count) {
  const auto at = [&](typename V::Floats values, int64_t i,
                      int64_t some) __attribute__((always_inline)) {
    if (bias != nullptr)
      values += some == 0 ? V::load(bias + i) : V::load_some(bias + i, some, 0.0f);
    return gelu<V, kTanh>(values);
  };
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) V::store(y + i, at(V::load(x + i), i, 0));
  const int64_t rest = count - i;
  if (rest > 0) V::store_some(y + i, rest, at(V::load_some(x + i, rest, 0.0f), i, rest));
}

template <class V, bool kTanh, class X>
LLMJP_CPU_INLINE void backward(const X* dy, const X* x, const float* bias, X* dx, float* sums,
                               int64_t count) {
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) {
    typename V::Floats u = V::load(x + i);
    if (bias != nullptr) u += V::load(bias + i);
    const typename V::Floats gradient = V::load(dy + i) * gelu_derivative<V, kTanh>(u);
    V::store(dx + i, gradient);
    if (sums != nullptr) V::store(sums + i, V::load(sums + i) + gradient);
  }
  const int64_t rest = count - i;
  if (rest > 0) {
    typename V::Floats u = V::load_some(x + i, rest, 0.0f);
    if (bias != nullptr) u += V::load_some(bias + i, rest, 0.0f);
    const typename V::Floats gradient =
        V::load_some(dy + i, rest, 0.0f) * gelu_derivative<V, kTanh>(u);
    V::store_some(dx + i, rest, gradient);
    if (sums != nullptr)
      V::store_some(sums + i, rest, V::load_some(sums + i, rest, 0.0f) + gradient);
  }
}

LLMJP_CPU_INLINE const float* bias_at(const void* bias, int64_t column) {
  return bias == nullptr ? nullptr : static_cast<const float*>(bias) + column;
}

struct Forward {
  template <class V>
  LLMJP_CPU_INLINE static void run(const BiasGeluForward& p, int64_t row, int64_t first,
                                   int64_t last) {
    host::visit_cpu_type(p.x_type, [&](auto element) __attribute__((always_inline)) {
      using X = decltype(element);
      const X* x = static_cast<const X*>(p.x) + row * p.x_stride + first;
      X* y = static_cast<X*>(p.y) + row * p.width + first;
      const float* bias = bias_at(p.bias, first);
      if (p.tanh) {
        forward<V, true>(x, bias, y, last - first);
      } else {
        forward<V, false>(x, bias, y, last - first);
      }
    });
  }
};

struct Backward {
  template <class V>
  LLMJP_CPU_INLINE static void run(const BiasGeluBackward& p, int64_t row, int64_t first,
                                   int64_t last, float* sums) {
    host::visit_cpu_type(p.x_type, [&](auto element) __attribute__((always_inline)) {
      using X = decltype(element);
      const X* dy = static_cast<const X*>(p.dy) + row * p.dy_stride + first;
      const X* x = static_cast<const X*>(p.x) + row * p.x_stride + first;
      X* dx = static_cast<X*>(p.dx) + row * p.width + first;
      const float* bias = bias_at(p.bias, first);
      float* sums_here = sums == nullptr ? nullptr : sums + first;
      if (p.tanh) {
        backward<V, true>(dy, x, bias, dx, sums_here, last - first);
      } else {
        backward<V, false>(dy, x, bias, dx, sums_here, last - first);
      }
    });
  }
};

}  // namespace

void bias_gelu_forward_columns(const BiasGeluForward& params, int64_t row, int64_t first,
                               int64_t last) {
  host::run_vectorised<Forward>(params, row, first, last);
}

void bias_gelu_backward_columns(const BiasGeluBackward& params, int64_t row, int64_t first,
                                int64_t last, float* sums) {
  host::run_vectorised<Backward>(params, row, first, last, sums);
}

}  // namespace llmjp::activation
