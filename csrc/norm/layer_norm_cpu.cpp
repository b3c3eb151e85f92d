// A row is read from memory once, and again from the cache for each further pass.
#include "norm/layer_norm_cpu.h"

#include <algorithm>
#include <cmath>

#include "host/cpu_dispatch.h"
#include "host/cpu_row.h"
#include "host/dropout_cpu.h"

namespace llmjp::norm {
namespace {

using host::CpuDropout;
using host::kSums;
using host::load;
using host::store;

struct Statistics {
  float mean;
  float variance;
};

template <class V, class R>
LLMJP_CPU_INLINE Statistics centred_statistics(const R* r, int64_t width) {
  using Floats = typename V::Floats;
  const float inverse_width = 1.0f / static_cast<float>(width);
  Floats sum[kSums] = {};
  host::for_vectors_of_sums<V>(width, [&](int64_t i, auto count, auto k) __attribute__((
                                          always_inline)) { sum[k] += load<V>(r + i, count); });
  const float mean = host::sum_of<V>(sum) * inverse_width;
  // Where the mean is large against the spread, its rounding is, too: what is left of it is taken
  // from both.
  Floats rest[kSums] = {};
  Floats squares[kSums] = {};
  host::for_vectors_of_sums<V>(
      width, [&](int64_t i, auto count, auto k) __attribute__((always_inline)) {
        const Floats centred = host::within<V>(load<V>(r + i, count) - mean, count);
        rest[k] += centred;
        squares[k] += centred * centred;
      });
  const float shift = host::sum_of<V>(rest) * inverse_width;
  const float variance = host::sum_of<V>(squares) * inverse_width - shift * shift;
  return {mean + shift, std::max(variance, 0.0f)};
}

template <class V, class R>
LLMJP_CPU_INLINE Statistics plain_statistics(const R* r, int64_t width) {
  typename V::Floats squares[kSums] = {};
  host::for_vectors_of_sums<V>(width,
                               [&](int64_t i, auto count, auto k) __attribute__((always_inline)) {
                                 const typename V::Floats values = load<V>(r + i, count);
                                 squares[k] += values * values;
                               });
  return {0.0f, host::sum_of<V>(squares) / static_cast<float>(width)};
}

template <class V, class X, class R>
LLMJP_CPU_INLINE void normalise_row(const LayerNormForward& p, int64_t row, const R* r) {
  using Floats = typename V::Floats;
  X* y = static_cast<X*>(p.y) + row * p.width;
  const float* weight = static_cast<const float*>(p.weight);
  const float* bias = static_cast<const float*>(p.bias);
  const Statistics of_row =
      p.centred ? centred_statistics<V>(r, p.width) : plain_statistics<V>(r, p.width);
  const float mean = of_row.mean;
  const float rstd = 1.0f / std::sqrt(of_row.variance + p.eps);
  if (p.centred) p.mean[row] = mean;
  p.rstd[row] = rstd;
  host::for_vectors<V>(p.width, [&](int64_t i, auto count) __attribute__((always_inline)) {
    Floats result = (load<V>(r + i, count) - mean) * rstd * load<V>(weight + i, count);
    if (bias != nullptr) result += load<V>(bias + i, count);
    store<V>(y + i, count, result);
  });
}

template <class V, class X, class R>
LLMJP_CPU_INLINE void forward_row(const LayerNormForward& p, const CpuDropout& dropout,
                                  int64_t row) {
  const X* x = static_cast<const X*>(p.x) + row * p.x_stride;
  if (p.residual == nullptr) return normalise_row<V, X>(p, row, x);
  const R* residual = static_cast<const R*>(p.residual) + row * p.residual_stride;
  R* r = static_cast<R*>(p.r) + row * p.width;
  host::for_vectors_with_dropout<V>(
      dropout, row, p.width, [&](int64_t i, auto count, auto drop) __attribute__((always_inline)) {
        store<V>(r + i, count, drop(load<V>(x + i, count)) + load<V>(residual + i, count));
      });
  normalise_row<V, X>(p, row, static_cast<const R*>(r));
}

// kRows at a time: each has sums of its own, whose additions do not wait for one another, and what
// they add to the weights' sums is stored once.
template <class V, class X, class R, int kRows>
LLMJP_CPU_INLINE void backward_rows(const LayerNormBackward& p, const CpuDropout& dropout,
                                    int64_t first, float* sums) {
  using Floats = typename V::Floats;
  const int64_t width = p.width;
  const bool centred = p.centred;
  const float* weight = static_cast<const float*>(p.weight);
  float* dbias = sums + width;
  const float inverse_width = 1.0f / static_cast<float>(width);
  const X* dy[kRows];
  const R* r[kRows];
  float mean[kRows];
  float rstd[kRows];
  host::unrolled<kRows>([&](auto k) __attribute__((always_inline)) {
    const int64_t row = first + k;
    dy[k] = static_cast<const X*>(p.dy) + row * p.dy_stride;
    r[k] = static_cast<const R*>(p.r) + row * p.r_stride;
    mean[k] = centred ? p.mean[row] : 0.0f;
    rstd[k] = p.rstd[row];
  });

  Floats sum_g[kRows] = {};
  Floats sum_g_normalised[kRows] = {};
  host::for_vectors<V>(width, [&](int64_t i, auto count) __attribute__((always_inline)) {
    const Floats weight_here = load<V>(weight + i, count);
    Floats dweight_here = load<V>(sums + i, count);
    Floats dbias_here = centred ? load<V>(dbias + i, count) : Floats{};
    host::unrolled<kRows>([&](auto k) __attribute__((always_inline)) {
      const Floats dy_here = load<V>(dy[k] + i, count);
      const Floats normalised =
          host::within<V>((load<V>(r[k] + i, count) - mean[k]) * rstd[k], count);
      const Floats g = dy_here * weight_here;
      sum_g[k] += g;
      sum_g_normalised[k] += g * normalised;
      dweight_here += dy_here * normalised;
      dbias_here += dy_here;
    });
    store<V>(sums + i, count, dweight_here);
    if (centred) store<V>(dbias + i, count, dbias_here);
  });

  host::unrolled<kRows>([&](auto k) __attribute__((always_inline)) {
    const int64_t row = first + k;
    const R* dr = p.dr == nullptr ? nullptr : static_cast<const R*>(p.dr) + row * p.dr_stride;
    R* dr_sum = static_cast<R*>(p.dr_sum) + row * width;
    X* dx = dropout.drops ? static_cast<X*>(p.dx) + row * width : nullptr;
    const float mean_here = mean[k];
    const float rstd_here = rstd[k];
    const float mean_g = centred ? V::sum_of(sum_g[k]) * inverse_width : 0.0f;
    const float mean_g_normalised = V::sum_of(sum_g_normalised[k]) * inverse_width;
    // A row of one value is normalised to 0 whatever it is; its terms below cancel only nearly.
    const float scale = centred && width == 1 ? 0.0f : rstd_here;
    host::for_vectors_with_dropout<V>(
        dropout, row, width, [&](int64_t i, auto count, auto drop) __attribute__((always_inline)) {
          const Floats normalised = (load<V>(r[k] + i, count) - mean_here) * rstd_here;
          const Floats g = load<V>(dy[k] + i, count) * load<V>(weight + i, count);
          Floats result = scale * (g - mean_g - normalised * mean_g_normalised);
          if (dr != nullptr) result += load<V>(dr + i, count);
          store<V>(dr_sum + i, count, result);
          if (dx != nullptr) store<V>(dx + i, count, drop(result));
        });
  });
}

struct Forward {
  template <class V>
  LLMJP_CPU_INLINE static void run(const LayerNormForward& p, int64_t first, int64_t last) {
    const CpuDropout dropout(p.random, p.dropout);
    host::visit_cpu_types(p.x_type, p.row_type,
                          [&](auto x, auto row_element) __attribute__((always_inline)) {
                            for (int64_t row = first; row < last; ++row)
                              forward_row<V, decltype(x), decltype(row_element)>(p, dropout, row);
                          });
  }
};

struct Backward {
  template <class V>
  LLMJP_CPU_INLINE static void run(const LayerNormBackward& p, int64_t first, int64_t last,
                                   float* sums) {
    constexpr int kRows = V::kLanes == 16 ? 4 : 2;  // as many as registers hold the sums of
    const CpuDropout dropout(p.random, p.dropout);
    host::visit_cpu_types(p.x_type, p.row_type,
                          [&](auto x, auto row_element) __attribute__((always_inline)) {
                            using X = decltype(x);
                            using R = decltype(row_element);
                            int64_t row = first;
                            for (; row + kRows <= last; row += kRows)
                              backward_rows<V, X, R, kRows>(p, dropout, row, sums);
                            for (; row < last; ++row)
                              backward_rows<V, X, R, 1>(p, dropout, row, sums);
                          });
  }
};

}  // namespace

void layer_norm_forward_rows(const LayerNormForward& params, int64_t first, int64_t last) {
  host::run_vectorised<Forward>(params, first, last);
}

void layer_norm_backward_rows(const LayerNormBackward& params, int64_t first, int64_t last,
                              float* sums) {
  host::run_vectorised<Backward>(params, first, last, sums);
}

}  // namespace llmjp::norm
