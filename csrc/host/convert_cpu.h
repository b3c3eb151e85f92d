// Arrays of a tensor's type to and from float32, for native code of CPU tensors: where a call of a
// torch op would cost more than the conversion, and where float32 is what the code takes.
#pragma once

#include <cstdint>
#include <vector>

#include "host/dtype.h"

namespace llmjp::host {

// An array as float32: itself, or a copy. Null stays null.
class FloatArray {
 public:
  FloatArray(const void* numbers, DType type, int64_t count);
  FloatArray(const FloatArray&) = delete;
  FloatArray& operator=(const FloatArray&) = delete;

  const float* data() const { return data_; }

 private:
  std::vector<float> copy_;
  const float* data_;
};

// Rounds to `type`.
void store_floats(const float* numbers, int64_t count, DType type, void* to);

}  // namespace llmjp::host
