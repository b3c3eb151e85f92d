#include "host/convert_cpu.h"

#include "host/cpu_dispatch.h"
#include "host/cpu_row.h"

namespace llmjp::host {
namespace {

struct ToFloats {
  template <class V>
  LLMJP_CPU_INLINE static void run(DType type, const void* from, int64_t count, float* to) {
    visit_cpu_type(type, [&](auto element) __attribute__((always_inline)) {
      const auto* place = static_cast<const decltype(element)*>(from);
      for_vectors<V>(count, [&](int64_t i, auto some) __attribute__((always_inline)) {
        store<V>(to + i, some, load<V>(place + i, some));
      });
    });
  }
};

struct FromFloats {
  template <class V>
  LLMJP_CPU_INLINE static void run(DType type, const float* from, int64_t count, void* to) {
    visit_cpu_type(type, [&](auto element) __attribute__((always_inline)) {
      auto* place = static_cast<decltype(element)*>(to);
      for_vectors<V>(count, [&](int64_t i, auto some) __attribute__((always_inline)) {
        store<V>(place + i, some, load<V>(from + i, some));
      });
    });
  }
};

}  // namespace

FloatArray::FloatArray(const void* numbers, DType type, int64_t count)
    : data_(static_cast<const float*>(numbers)) {
  if (numbers == nullptr || type == DType::kFloat32) return;
  copy_.resize(count);
  run_vectorised<ToFloats>(type, numbers, count, copy_.data());
  data_ = copy_.data();
}

void store_floats(const float* numbers, int64_t count, DType type, void* to) {
  run_vectorised<FromFloats>(type, numbers, count, to);
}

}  // namespace llmjp::host
