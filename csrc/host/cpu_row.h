// Loops over a row for native code of CPU tensors, by vectors, a last one of fewer numbers
// included.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "host/cpu_vector.h"

namespace llmjp::host {

// Calls visit(column, count) for a row's vectors; count is V::kLanes, as the compiler knows, but
// for a last one.
template <class V, class Visit>
LLMJP_CPU_INLINE void for_vectors(int64_t width, Visit visit) {
  int64_t i = 0;
  for (; i + V::kLanes <= width; i += V::kLanes)
    visit(i, std::integral_constant<int64_t, V::kLanes>{});
  if (i < width) visit(i, width - i);
}

// Calls visit(i) for i from 0 to kCount - 1, which the compiler knows.
template <int kCount, class Visit>
LLMJP_CPU_INLINE void unrolled(Visit visit) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) __attribute__((always_inline)) {
    (visit(std::integral_constant<int, kIndex>{}), ...);
  }(std::make_integer_sequence<int, kCount>{});
}

// As for_vectors, with the number of a sum as a third argument: an addition waits for the one
// before it to the same sum, so there are several.
constexpr int kSums = 4;
template <class V, class Visit>
LLMJP_CPU_INLINE void for_vectors_of_sums(int64_t width, Visit visit) {
  using Full = std::integral_constant<int64_t, V::kLanes>;
  using First = std::integral_constant<int, 0>;
  int64_t i = 0;
  for (; i + kSums * V::kLanes <= width; i += kSums * V::kLanes) {
    unrolled<kSums>(
        [&](auto sum) __attribute__((always_inline)) { visit(i + sum * V::kLanes, Full{}, sum); });
  }
  for (; i + V::kLanes <= width; i += V::kLanes) visit(i, Full{}, First{});
  if (i < width) visit(i, width - i, First{});
}

template <class V>
LLMJP_CPU_INLINE float sum_of(const typename V::Floats (&sums)[kSums]) {
  static_assert(kSums == 4);
  return V::sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// Lanes behind the row's end are 0.
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

// Lanes behind the row's end as 0: what they hold is no part of a sum.
template <class V, class Count>
LLMJP_CPU_INLINE typename V::Floats within(typename V::Floats values, Count count) {
  if constexpr (std::is_same_v<Count, int64_t>) {
    for (int lane = 0; lane < V::kLanes; ++lane) values[lane] = lane < count ? values[lane] : 0.0f;
  }
  return values;
}

}  // namespace llmjp::host
