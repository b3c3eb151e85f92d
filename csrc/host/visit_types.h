// From element types as run-time values to the C++ types that a launcher is instantiated for.
// CMakeLists.txt holds the same tables.
#pragma once

#include <array>
#include <cstddef>

#include "host/dtype.h"

namespace llmjp::device {
struct float16;
struct bfloat16;
}  // namespace llmjp::device

namespace llmjp::host {

template <class T>
constexpr DType kDType = DType::kFloat32;
template <>
constexpr DType kDType<device::float16> = DType::kFloat16;
template <>
constexpr DType kDType<device::bfloat16> = DType::kBFloat16;

// One supported combination, and all of them.
template <class... Elements>
struct Types {};
template <class... Combinations>
struct TypeTable {};

using OneType = TypeTable<Types<float>, Types<device::float16>, Types<device::bfloat16>>;

// A tensor and what belongs to it: as it, or fp32.
using TensorAndParameter =
    TypeTable<Types<float, float>, Types<device::float16, device::float16>,
              Types<device::float16, float>, Types<device::bfloat16, device::bfloat16>,
              Types<device::bfloat16, float>>;

// x, the residual stream beside it, and parameters.
using TensorRowAndParameter =
    TypeTable<Types<float, float, float>, Types<device::float16, device::float16, device::float16>,
              Types<device::float16, device::float16, float>, Types<device::float16, float, float>,
              Types<device::bfloat16, device::bfloat16, device::bfloat16>,
              Types<device::bfloat16, device::bfloat16, float>,
              Types<device::bfloat16, float, float>>;

template <class... Elements, class Visit>
bool visit_if(Types<Elements...>, const std::array<DType, sizeof...(Elements)>& given,
              Visit& visit) {
  if (given != std::array<DType, sizeof...(Elements)>{kDType<Elements>...}) return false;
  visit.template operator()<Elements...>();
  return true;
}

// Calls visit.operator()<Elements…>() for the combination of the table that was given; false where
// it holds none.
template <class... Combinations, std::size_t kCount, class Visit>
bool visit_types(TypeTable<Combinations...>, const std::array<DType, kCount>& given, Visit visit) {
  return (visit_if(Combinations{}, given, visit) || ...);
}

}  // namespace llmjp::host
