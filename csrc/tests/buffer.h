// Operands of kernel tests: buffers of exactly the size that a kernel may touch, so that the
// sanitized build finds any access beyond, poisoned until drawn, so that an output left unwritten
// shows.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>

#include "device/dtype.h"
#include "host/dtype.h"
#include "tests/check.h"

namespace llmjp::tests {

template <class T>
constexpr host::DType kType = host::DType::kFloat32;
template <>
constexpr host::DType kType<device::float16> = host::DType::kFloat16;
template <>
constexpr host::DType kType<device::bfloat16> = host::DType::kBFloat16;

// `count` elements that begin `offset` elements behind a multiple of 16 bytes and end where the
// allocation ends.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count, int64_t offset = 0)
      : bytes_(new char[(offset + count) * sizeof(T)]), count_(count) {
    static_assert(__STDCPP_DEFAULT_NEW_ALIGNMENT__ >= 16, "new aligns to 16 bytes");
    data_ = reinterpret_cast<T*>(bytes_.get()) + offset;
    for (int64_t i = 0; i < count; ++i) data_[i] = device::from_float<T>(NAN);
  }

  T* data() { return data_; }
  double operator[](int64_t i) const { return device::to_float(data_[i]); }

  void draw(std::mt19937& random, float mean = 0.0f, float deviation = 2.0f) {
    std::normal_distribution<float> normal(mean, deviation);
    for (int64_t i = 0; i < count_; ++i) data_[i] = device::from_float<T>(normal(random));
  }

 private:
  std::unique_ptr<char[]> bytes_;
  T* data_;
  int64_t count_;
};

inline void check_close(double actual, double expected, double tolerance, const std::string& what) {
  if (!(std::abs(actual - expected) <= tolerance * (1.0 + std::abs(expected)))) {
    fail(__FILE__, __LINE__,
         what + " is " + std::to_string(actual) + ", expected " + std::to_string(expected));
  }
}

}  // namespace llmjp::tests
