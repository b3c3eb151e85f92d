// Element types as run-time values: what a launcher receives before it is turned into a C++ type.
#pragma once

#include <cstdint>

namespace llmjp::host {

enum class DType : int8_t { kFloat32, kFloat16, kBFloat16 };

constexpr const char* name(DType type) {
  switch (type) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
  }
  return "unknown";
}

constexpr int64_t size_in_bytes(DType type) { return type == DType::kFloat32 ? 4 : 2; }

}  // namespace llmjp::host
