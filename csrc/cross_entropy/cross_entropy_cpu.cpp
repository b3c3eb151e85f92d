// Forward reads a row once, in blocks. A block's exponentials are taken relative to the largest
// logit of those before it; where that was far too small the block is done again, from the cache.
// Backward reads a row once and writes its gradient, which may lie over it.
#include "cross_entropy/cross_entropy_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "host/cpu_features.h"
#include "host/cpu_vector.h"

namespace llmjp::cross_entropy {
namespace {

using host::CpuBFloat16;
using host::CpuFloat16;
using host::CpuVector;
using host::DType;
using host::InstructionSet;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Elements whose sums are taken by themselves: 4 KB of float32, small beside the first-level cache.
constexpr int64_t kBlock = 1024;

// How far a block may lie above the largest logit before it: exp(40) · kBlock is nothing in
// float32.
constexpr float kMostAbove = 40.0f;

// Where cross_entropy_kernels.cuh has RowPlaces' formula too.
LLMJP_CPU_INLINE int64_t row_offset(const RowPlaces& places, int64_t row) {
  const int64_t outer = row / places.inner_count;
  return outer * places.outer_stride + (row - outer * places.inner_count) * places.inner_stride;
}

template <class V, class X>
LLMJP_CPU_INLINE float number_at(const X* place) {
  return V::load_some(place, 1, 0.0f)[0];
}

template <class V, class X>
LLMJP_CPU_INLINE float largest_in(const X* x, int64_t count) {
  typename V::Floats most = V::splat(-kInfinity);
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) most = V::larger(V::load(x + i), most);
  if (i < count) most = V::larger(V::load_some(x + i, count - i, -kInfinity), most);
  return V::largest_of(most);
}

template <class V>
LLMJP_CPU_INLINE float exp_of(float x) {
  return V::exp(V::splat(x))[0];
}

struct BlockSum {
  float largest;
  float sum;  // Σ exp(x − base)
};

template <class V, class X>
LLMJP_CPU_INLINE BlockSum sum_block(const X* x, int64_t count, float base) {
  typename V::Floats most = V::splat(-kInfinity);
  typename V::Floats sum{};
  const auto take = [&](typename V::Floats values) __attribute__((always_inline)) {
    most = V::larger(values, most);
    sum += V::exp(values - base);
  };
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) take(V::load(x + i));
  if (i < count) take(V::load_some(x + i, count - i, -kInfinity));
  return {V::largest_of(most), V::sum_of(sum)};
}

// Σ (x − shift)
template <class V, class X>
LLMJP_CPU_INLINE float sum_shifted(const X* x, int64_t count, float shift) {
  typename V::Floats sum{};
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) sum += V::load(x + i) - shift;
  if (i < count) sum += V::load_some(x + i, count - i, shift) - shift;
  return V::sum_of(sum);
}

template <class V, class X>
LLMJP_CPU_INLINE void forward_row(const CrossEntropyForward& p, int64_t row) {
  const int64_t target = p.targets[row];
  if (target == p.ignore_index) {
    p.loss[row] = p.largest[row] = p.log_sum[row] = 0.0f;
    return;
  }
  const X* x = static_cast<const X*>(p.logits) + row_offset(p.places, row);
  const float wanted = number_at<V>(x + target);
  const bool smooth = p.label_smoothing > 0.0f;

  float largest = largest_in<V>(x, std::min(kBlock, p.classes));
  float base = largest;
  float sum = 0.0f;
  float shifted = 0.0f;
  for (int64_t start = 0; start < p.classes; start += kBlock) {
    const int64_t count = std::min(kBlock, p.classes - start);
    // -inf − -inf would be NaN: as long as nothing has a probability, 0 does as well.
    BlockSum block = sum_block<V>(x + start, count, base == -kInfinity ? 0.0f : base);
    largest = std::max(largest, block.largest);
    if (block.largest > base + kMostAbove) {
      if (base != -kInfinity) sum *= exp_of<V>(base - largest);
      base = largest;
      block = sum_block<V>(x + start, count, base);
    }
    sum += block.sum;
    if (smooth) shifted += sum_shifted<V>(x + start, count, wanted);
  }
  if (largest > base) sum *= exp_of<V>(base - largest);

  const float log_sum = std::log(sum);
  // Relative to the largest logit, since lse − logit would cancel where the loss is small.
  float loss = log_sum - (wanted - largest);
  if (smooth) loss -= p.label_smoothing * (shifted / static_cast<float>(p.classes));
  if (p.z_loss > 0.0f) loss += p.z_loss * (largest + log_sum) * (largest + log_sum);
  p.loss[row] = loss;
  p.largest[row] = largest;
  p.log_sum[row] = log_sum;
}

template <class V, class X>
LLMJP_CPU_INLINE void backward_row(const CrossEntropyBackward& p, int64_t row) {
  const X* x = static_cast<const X*>(p.logits) + row_offset(p.places, row);
  X* dx = static_cast<X*>(p.dlogits) + row_offset(p.gradient_places, row);
  const int64_t target = p.targets[row];
  if (target == p.ignore_index) {
    std::memset(dx, 0, static_cast<size_t>(p.vocab) * sizeof(X));
    return;
  }
  const float g = p.dloss[row * p.dloss_stride];
  const float largest = p.largest[row];
  const float log_sum = p.log_sum[row];
  const float scale = g * (1.0f + 2.0f * p.z_loss * (largest + log_sum));
  const float spread = g * (p.label_smoothing / static_cast<float>(p.classes));
  const float hit = g * (1.0f - p.label_smoothing);
  const auto gradient = [&](typename V::Floats values) __attribute__((always_inline)) {
    return scale * V::exp(values - largest - log_sum) - spread;
  };
  const float at_target = gradient(V::splat(number_at<V>(x + target)))[0] - hit;

  int64_t i = 0;
  for (; i + V::kLanes <= p.classes; i += V::kLanes) V::store(dx + i, gradient(V::load(x + i)));
  if (i < p.classes) {
    const int64_t count = p.classes - i;
    V::store_some(dx + i, count, gradient(V::load_some(x + i, count, 0.0f)));
  }
  V::store_some(dx + target, 1, V::splat(at_target));
  std::memset(dx + p.classes, 0, static_cast<size_t>(p.vocab - p.classes) * sizeof(X));
}

template <class V, class X>
LLMJP_CPU_INLINE void run_rows(const CrossEntropyForward& p, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) forward_row<V, X>(p, row);
}

template <class V, class X>
LLMJP_CPU_INLINE void run_rows(const CrossEntropyBackward& p, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) backward_row<V, X>(p, row);
}

template <class V, class Params>
LLMJP_CPU_INLINE void run(const Params& p, int64_t first, int64_t last) {
  switch (p.type) {
    case DType::kFloat32:
      return run_rows<V, float>(p, first, last);
    case DType::kFloat16:
      return run_rows<V, CpuFloat16>(p, first, last);
    case DType::kBFloat16:
      return run_rows<V, CpuBFloat16>(p, first, last);
  }
}

template <class Params>
void run_generic(const Params& p, int64_t first, int64_t last) {
  run<CpuVector<4>>(p, first, last);
}
#ifdef __x86_64__
template <class Params>
LLMJP_CPU_AVX2 void run_avx2(const Params& p, int64_t first, int64_t last) {
  run<CpuVector<8>>(p, first, last);
}
template <class Params>
LLMJP_CPU_AVX512 void run_avx512(const Params& p, int64_t first, int64_t last) {
  run<CpuVector<16>>(p, first, last);
}
#endif

template <class Params>
void run_best(const Params& p, int64_t first, int64_t last) {
#ifdef __x86_64__
  switch (host::cpu_instruction_set()) {
    case InstructionSet::kAvx512:
      return run_avx512(p, first, last);
    case InstructionSet::kAvx2:
      return run_avx2(p, first, last);
    case InstructionSet::kGeneric:
      break;
  }
#endif
  run_generic(p, first, last);
}

}  // namespace

void cross_entropy_forward_rows(const CrossEntropyForward& params, int64_t first, int64_t last) {
  run_best(params, first, last);
}

void cross_entropy_backward_rows(const CrossEntropyBackward& params, int64_t first, int64_t last) {
  run_best(params, first, last);
}

}  // namespace llmjp::cross_entropy
