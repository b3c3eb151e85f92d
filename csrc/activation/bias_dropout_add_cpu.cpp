#include "activation/bias_dropout_add_cpu.h"

#include "host/cpu_dispatch.h"
#include "host/cpu_row.h"

namespace llmjp::activation {
namespace {

using host::load;
using host::store;

template <class V, class X, class R>
LLMJP_CPU_INLINE void forward_row(const CpuForward& p, int64_t row) {
  const X* x = static_cast<const X*>(p.x) + row * p.x_stride;
  const R* residual = static_cast<const R*>(p.residual) + row * p.residual_stride;
  const float* bias = p.bias;
  R* r = static_cast<R*>(p.r) + row * p.width;
  host::for_vectors_with_dropout<V>(
      p.dropout, row, p.width,
      [&](int64_t i, auto count, auto drop) __attribute__((always_inline)) {
        typename V::Floats values = load<V>(x + i, count);
        if (bias != nullptr) values += load<V>(bias + i, count);
        store<V>(r + i, count, drop(values) + load<V>(residual + i, count));
      });
}

template <class V, class X, class R>
LLMJP_CPU_INLINE void backward_row(const CpuBackward& p, int64_t row, float* sums) {
  const R* dr = static_cast<const R*>(p.dr) + row * p.dr_stride;
  X* dx = p.dx == nullptr ? nullptr : static_cast<X*>(p.dx) + row * p.width;
  host::for_vectors_with_dropout<V>(
      p.dropout, row, p.width,
      [&](int64_t i, auto count, auto drop) __attribute__((always_inline)) {
        const typename V::Floats gradient = drop(load<V>(dr + i, count));
        if (dx != nullptr) store<V>(dx + i, count, gradient);
        if (sums != nullptr) store<V>(sums + i, count, load<V>(sums + i, count) + gradient);
      });
}

struct Forward {
  template <class V>
  LLMJP_CPU_INLINE static void run(const CpuForward& p, int64_t first, int64_t last) {
    host::visit_cpu_types(p.x_type, p.row_type,
                          [&](auto x, auto row_element) __attribute__((always_inline)) {
                            for (int64_t row = first; row < last; ++row)
                              forward_row<V, decltype(x), decltype(row_element)>(p, row);
                          });
  }
};

struct Backward {
  template <class V>
  LLMJP_CPU_INLINE static void run(const CpuBackward& p, int64_t first, int64_t last, float* sums) {
    host::visit_cpu_types(p.x_type, p.row_type,
                          [&](auto x, auto row_element) __attribute__((always_inline)) {
                            for (int64_t row = first; row < last; ++row)
                              backward_row<V, decltype(x), decltype(row_element)>(p, row, sums);
                          });
  }
};

}  // namespace

void CpuForward::run(int64_t first, int64_t last) const {
  host::run_vectorised<Forward>(*this, first, last);
}

void CpuBackward::run(int64_t first, int64_t last, float* sums) const {
  host::run_vectorised<Backward>(*this, first, last, sums);
}

}  // namespace llmjp::activation
