#include "activation/swiglu_cpu.h"

#include "activation/logistic_cpu.h"
#include "host/cpu_dispatch.h"

namespace llmjp::activation {
namespace {

template <class V, class X>
LLMJP_CPU_INLINE void forward(const X* gate, const X* up, X* y, int64_t count) {
  const auto product = [](typename V::Floats g, typename V::Floats u)
                           __attribute__((always_inline)) { return g * logistic<V>(-g).share * u; };
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes)
    V::store(y + i, product(V::load(gate + i), V::load(up + i)));
  if (i < count) {
    const int64_t rest = count - i;
    V::store_some(y + i, rest,
                  product(V::load_some(gate + i, rest, 0.0f), V::load_some(up + i, rest, 0.0f)));
  }
}

template <class V>
struct Gradients {
  typename V::Floats gate;
  typename V::Floats up;
};

template <class V>
LLMJP_CPU_INLINE Gradients<V> gradients(typename V::Floats dy, typename V::Floats g,
                                        typename V::Floats u) {
  const Logistic<V> at = logistic<V>(-g);
  return {dy * u * (at.share * (1.0f + g * at.rest)), dy * (g * at.share)};
}

template <class V, class X>
LLMJP_CPU_INLINE void backward(const X* dy, const X* gate, const X* up, X* dgate, X* dup,
                               int64_t count) {
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) {
    const auto d = gradients<V>(V::load(dy + i), V::load(gate + i), V::load(up + i));
    V::store(dgate + i, d.gate);
    V::store(dup + i, d.up);
  }
  if (i < count) {
    const int64_t rest = count - i;
    const auto d =
        gradients<V>(V::load_some(dy + i, rest, 0.0f), V::load_some(gate + i, rest, 0.0f),
                     V::load_some(up + i, rest, 0.0f));
    V::store_some(dgate + i, rest, d.gate);
    V::store_some(dup + i, rest, d.up);
  }
}

template <class X>
LLMJP_CPU_INLINE const X* at(const void* rows, int64_t place) {
  return static_cast<const X*>(rows) + place;
}
template <class X>
LLMJP_CPU_INLINE X* at(void* rows, int64_t place) {
  return static_cast<X*>(rows) + place;
}

struct Forward {
  template <class V>
  LLMJP_CPU_INLINE static void run(const SwigluForward& p, int64_t row, int64_t first,
                                   int64_t last) {
    host::visit_cpu_type(p.type, [&](auto element) __attribute__((always_inline)) {
      using X = decltype(element);
      forward<V>(at<X>(p.gate, row * p.gate_stride + first), at<X>(p.up, row * p.up_stride + first),
                 at<X>(p.y, row * p.width + first), last - first);
    });
  }
};

struct Backward {
  template <class V>
  LLMJP_CPU_INLINE static void run(const SwigluBackward& p, int64_t row, int64_t first,
                                   int64_t last) {
    host::visit_cpu_type(p.type, [&](auto element) __attribute__((always_inline)) {
      using X = decltype(element);
      backward<V>(at<X>(p.dy, row * p.dy_stride + first),
                  at<X>(p.gate, row * p.gate_stride + first),
                  at<X>(p.up, row * p.up_stride + first), at<X>(p.dgate, row * p.width + first),
                  at<X>(p.dup, row * p.width + first), last - first);
    });
  }
};

}  // namespace

void swiglu_forward_columns(const SwigluForward& params, int64_t row, int64_t first, int64_t last) {
  host::run_vectorised<Forward>(params, row, first, last);
}

void swiglu_backward_columns(const SwigluBackward& params, int64_t row, int64_t first,
                             int64_t last) {
  host::run_vectorised<Backward>(params, row, first, last);
}

}  // namespace llmjp::activation
