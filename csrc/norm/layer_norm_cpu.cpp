// A row is read from memory once, and again from the cache for each further pass.
#include "norm/layer_norm_cpu.h"

#include <cmath>
#include <type_traits>

#include "host/cpu_dispatch.h"

namespace llmjp::norm {
namespace {

// Calls visit(column, count) for a row's vectors; count is V::kLanes, as the compiler knows, but
// for a last one.
template <class V, class Visit>
LLMJP_CPU_INLINE void for_vectors(int64_t width, Visit visit) {
  int64_t i = 0;
  for (; i + V::kLanes <= width; i += V::kLanes)
    visit(i, std::integral_constant<int64_t, V::kLanes>{});
  if (i < width) visit(i, width - i);
}

template <class V, class X, class Count>
LLMJP_CPU_INLINE typename V::Floats load(const X* place, Count count) {
  if constexpr (std::is_same_v<Count, int64_t>) {
    return V::load_some(place, count, 0.0f);
  } else {
    return V::load(place);
  }
}

template <class V, class X, class Count>
LLMJP_CPU_INLINE void store(X* place, Count count, typename V::Floats values) {
  if constexpr (std::is_same_v<Count, int64_t>) {
    V::store_some(place, count, values);
  } else {
    V::store(place, values);
  }
}

// Of lanes behind a row's end 0: what they hold is no part of a sum.
template <class V, class Count>
LLMJP_CPU_INLINE typename V::Floats within(typename V::Floats values, Count count) {
  if constexpr (std::is_same_v<Count, int64_t>) {
    for (int lane = 0; lane < V::kLanes; ++lane) values[lane] = lane < count ? values[lane] : 0.0f;
  }
  return values;
}

template <class V, class X, class R>
LLMJP_CPU_INLINE void forward_row(const LayerNormForward& p, int64_t row) {
  using Floats = typename V::Floats;
  const X* x = static_cast<const X*>(p.x) + row * p.x_stride;
  X* y = static_cast<X*>(p.y) + row * p.width;
  const float* weight = static_cast<const float*>(p.weight);
  const float* bias = static_cast<const float*>(p.bias);
  const float inverse_width = 1.0f / static_cast<float>(p.width);

  const auto normalise = [&](const auto* values) __attribute__((always_inline)) {
    float mean = 0.0f;
    if (p.centred) {
      Floats sum{};
      for_vectors<V>(p.width, [&](int64_t i, auto count) __attribute__((always_inline)) {
        sum += load<V>(values + i, count);
      });
      mean = V::sum_of(sum) * inverse_width;
    }
    // What is left of the mean, where it is large against the spread, is taken from both.
    Floats rest{};
    Floats squares{};
    for_vectors<V>(p.width, [&](int64_t i, auto count) __attribute__((always_inline)) {
      const Floats centred = within<V>(load<V>(values + i, count) - mean, count);
      rest += centred;
      squares += centred * centred;
    });
    const float shift = p.centred ? V::sum_of(rest) * inverse_width : 0.0f;
    const float variance = V::sum_of(squares) * inverse_width - shift * shift;
    mean += shift;
    if (p.centred) p.mean[row] = mean;
    const float rstd = 1.0f / std::sqrt(variance + p.eps);
    p.rstd[row] = rstd;
    for_vectors<V>(p.width, [&](int64_t i, auto count) __attribute__((always_inline)) {
      Floats result = (load<V>(values + i, count) - mean) * rstd * load<V>(weight + i, count);
      if (bias != nullptr) result += load<V>(bias + i, count);
      store<V>(y + i, count, result);
    });
  };
  if (p.residual == nullptr) return normalise(x);
  const R* residual = static_cast<const R*>(p.residual) + row * p.residual_stride;
  R* r = static_cast<R*>(p.r) + row * p.width;
  for_vectors<V>(p.width, [&](int64_t i, auto count) __attribute__((always_inline)) {
    store<V>(r + i, count, load<V>(x + i, count) + load<V>(residual + i, count));
  });
  normalise(static_cast<const R*>(r));
}

template <class V, class X, class R>
LLMJP_CPU_INLINE void backward_row(const LayerNormBackward& p, int64_t row, float* sums) {
  using Floats = typename V::Floats;
  const X* dy = static_cast<const X*>(p.dy) + row * p.dy_stride;
  const R* r = static_cast<const R*>(p.r) + row * p.r_stride;
  const R* dr = p.dr == nullptr ? nullptr : static_cast<const R*>(p.dr) + row * p.dr_stride;
  R* dr_sum = static_cast<R*>(p.dr_sum) + row * p.width;
  const float* weight = static_cast<const float*>(p.weight);
  const float mean = p.centred ? p.mean[row] : 0.0f;
  const float rstd = p.rstd[row];
  const float inverse_width = 1.0f / static_cast<float>(p.width);
  float* dbias = sums + p.width;
  // A row of one value is normalised to 0 whatever it is; its terms below cancel only nearly.
  const float scale = p.centred && p.width == 1 ? 0.0f : rstd;

  Floats sum_g{};
  Floats sum_g_normalised{};
  for_vectors<V>(p.width, [&](int64_t i, auto count) __attribute__((always_inline)) {
    const Floats dy_here = load<V>(dy + i, count);
    const Floats normalised = within<V>((load<V>(r + i, count) - mean) * rstd, count);
    const Floats g = dy_here * load<V>(weight + i, count);
    sum_g += g;
    sum_g_normalised += g * normalised;
    store<V>(sums + i, count, load<V>(sums + i, count) + dy_here * normalised);
    if (p.centred) store<V>(dbias + i, count, load<V>(dbias + i, count) + dy_here);
  });
  const float mean_g = p.centred ? V::sum_of(sum_g) * inverse_width : 0.0f;
  const float mean_g_normalised = V::sum_of(sum_g_normalised) * inverse_width;
  for_vectors<V>(p.width, [&](int64_t i, auto count) __attribute__((always_inline)) {
    const Floats normalised = (load<V>(r + i, count) - mean) * rstd;
    const Floats g = load<V>(dy + i, count) * load<V>(weight + i, count);
    Floats result = scale * (g - mean_g - normalised * mean_g_normalised);
    if (dr != nullptr) result += load<V>(dr + i, count);
    store<V>(dr_sum + i, count, result);
  });
}

// Calls visit(X{}, R{}) for a 16-bit x and its row, of one type or the row fp32.
template <class Params, class Visit>
LLMJP_CPU_INLINE void visit_types(const Params& p, Visit visit) {
  host::visit_cpu_type(p.x_type, [&](auto x) __attribute__((always_inline)) {
    if (p.row_type == p.x_type) {
      visit(x, x);
    } else {
      visit(x, float{});
    }
  });
}

struct Forward {
  template <class V>
  LLMJP_CPU_INLINE static void run(const LayerNormForward& p, int64_t first, int64_t last) {
    visit_types(p, [&](auto x, auto row_element) __attribute__((always_inline)) {
      for (int64_t row = first; row < last; ++row)
        forward_row<V, decltype(x), decltype(row_element)>(p, row);
    });
  }
};

struct Backward {
  template <class V>
  LLMJP_CPU_INLINE static void run(const LayerNormBackward& p, int64_t first, int64_t last,
                                   float* sums) {
    visit_types(p, [&](auto x, auto row_element) __attribute__((always_inline)) {
      for (int64_t row = first; row < last; ++row)
        backward_row<V, decltype(x), decltype(row_element)>(p, row, sums);
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
