// From run-time values to the constants that the kernels are compiled for.
#pragma once

#include <string>
#include <type_traits>

#include "attention/attention.h"
#include "attention/attention_launch.h"
#include "host/dtype.h"
#include "host/error.h"

namespace llmjp::attention {

// Calls `action` with the narrowest tile that holds a head, as a constant.
template <class Action>
auto with_tile(int head_dim, Action action) {
  if (head_dim < 8 || head_dim > kLargestHeadDim || head_dim % 8 != 0) {
    throw host::Unsupported("attention takes head_dim in multiples of 8 up to " +
                            std::to_string(kLargestHeadDim) + ", got " + std::to_string(head_dim));
  }
  if (head_dim <= 64) return action(std::integral_constant<int, 64>());
  if (head_dim <= 128) return action(std::integral_constant<int, 128>());
  return action(std::integral_constant<int, 256>());
}

// Calls `action` with the kernels' element type, as a std::type_identity.
template <class Action>
void with_type(host::DType type, Action action) {
  switch (type) {
    case host::DType::kFloat16:
      return action(std::type_identity<device::float16>());
    case host::DType::kBFloat16:
      return action(std::type_identity<device::bfloat16>());
    case host::DType::kFloat32:
      break;
  }
  throw host::Unsupported(std::string("attention takes float16 and bfloat16 on CUDA, got ") +
                          name(type));
}

}  // namespace llmjp::attention
