// Cross-entropy kernels: one block a row. Formulas: cross_entropy.h.
//
// Bytes: forward reads the logits once, backward reads and writes them once: 101 KB and 203 KB for
// a row of 50,688 bfloat16. Everything else of a row is a few numbers.
//
// A row need not begin at a multiple of 16 bytes (an odd vocabulary, a slice): the elements up to
// the first such place and those behind the last whole 16 bytes are taken one by one. Every thread
// keeps its largest value so far and the sum of exponentials relative to it; when a larger value
// comes, the sum is scaled once. -inf until then makes that scale exp(−inf) = 0.
#pragma once

#include <type_traits>

#include "cross_entropy/cross_entropy.h"
#include "device/math.h"
#include "device/reduce.h"
#include "device/vector.h"

namespace llmjp::cross_entropy {

// A long row gives each of 512 threads several 16-byte loads, of which four are on their way at a
// time: 64 KB a multiprocessor with two blocks, where latency × bandwidth asks for some 11 (A100:
// 2.0 TB/s × 0.6 µs / 108). Up to 8 KB those would mostly idle at barriers, and 128 do.
constexpr int kShortRowBytes = 8192;
constexpr int kShortRowThreads = 128;
constexpr int kLongRowThreads = 512;
constexpr int kUnroll = 4;

// 64 registers a thread.
template <int kThreads>
constexpr int kBlocks = 1024 / kThreads;

// Floats of shared memory per warp: the largest value, and two sums.
constexpr int kScratchValues = 3;

constexpr float kInfinity = __builtin_huge_valf();

// exp(value). For 16-bit logits the fast instruction's 2 ulp are far below the input's rounding,
// and a few instructions an element are all that the time of its two bytes allows.
template <class X>
LLMJP_DEVICE float exponential_of(float value) {
  if constexpr (std::is_same_v<X, float>) {
    return device::exponential(value);
  } else {
    return device::exp2_approx(value * 1.4426950408889634f);
  }
}

template <class T>
LLMJP_DEVICE T* row_at(T* first, const RowPlaces& places, int64_t row) {
  const int64_t outer = row / places.inner_count;
  return first + outer * places.outer_stride +
         (row - outer * places.inner_count) * places.inner_stride;
}

// Elements before the first 16-byte boundary, at most `count`.
template <class T>
LLMJP_DEVICE int64_t elements_to_boundary(const T* address, int64_t count) {
  const auto bytes = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(address) % 16);
  const int64_t elements = bytes / static_cast<int64_t>(sizeof(T));
  return elements < count ? elements : count;
}

// What a thread knows of its part of a row.
template <class X>
struct RowSum {
  float largest = -kInfinity;
  float sum = 0.0f;      // Σ exp(x − largest)
  float shifted = 0.0f;  // Σ (x − shift)

  // -inf − -inf would be NaN: a part of a row without any probability adds nothing.
  LLMJP_DEVICE float base() const { return largest == -kInfinity ? 0.0f : largest; }

  template <int kCount>
  LLMJP_DEVICE void take(const float (&values)[kCount], bool with_shifted, float shift) {
    float most = values[0];
    LLMJP_UNROLL
    for (int i = 1; i < kCount; ++i) most = device::larger(most, values[i]);
    if (most > largest) {
      sum *= exponential_of<X>(largest - most);
      largest = most;
    }
    const float from = base();
    LLMJP_UNROLL
    for (int i = 0; i < kCount; ++i) sum += exponential_of<X>(values[i] - from);
    if (with_shifted) {
      LLMJP_UNROLL
      for (int i = 0; i < kCount; ++i) shifted += values[i] - shift;
    }
  }
};

template <class X, int kThreads>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kThreads, kBlocks<kThreads>)
    cross_entropy_forward_kernel(CrossEntropyForward p) {
  using device::Vector;
  constexpr int kChunk = device::kVectorElements<X>;
  constexpr int kWarps = kThreads / device::kWarpSize;

  const int64_t row = device::block_index_x();
  const int thread = device::thread_index();
  const int64_t target = p.targets[row];
  if (target == p.ignore_index) {  // the whole block: no barrier is missed
    if (thread == 0) {
      p.loss[row] = 0.0f;
      p.largest[row] = 0.0f;
      p.log_sum[row] = 0.0f;
    }
    return;
  }
  const X* x = row_at(static_cast<const X*>(p.logits), p.places, row);
  const bool valid = target >= 0 && target < p.classes;
  const float wanted = valid ? device::to_float(x[target]) : device::to_float(x[0]);
  const bool smooth = p.label_smoothing > 0.0f;

  // Elements [0, head) and [tail, classes) one by one, those between in chunks.
  const int64_t head = elements_to_boundary(x, p.classes);
  const int64_t chunks = (p.classes - head) / kChunk;
  const int64_t tail = head + chunks * kChunk;
  RowSum<X> part;
  const auto take_chunk = [&](const Vector<X, kChunk>& chunk) {
    float values[kChunk];
    device::to_floats(chunk, values);
    part.take(values, smooth, wanted);
  };
  const auto take_element = [&](int64_t column) {
    const float values[1] = {device::to_float(x[column])};
    part.take(values, smooth, wanted);
  };

  const X* body = x + head;
  int64_t chunk = thread;
  for (; chunk + (kUnroll - 1) * kThreads < chunks; chunk += kUnroll * kThreads) {
    Vector<X, kChunk> held[kUnroll];
    LLMJP_UNROLL
    for (int u = 0; u < kUnroll; ++u)
      held[u] = device::load_once<Vector<X, kChunk>>(body + (chunk + u * kThreads) * kChunk);
    LLMJP_UNROLL
    for (int u = 0; u < kUnroll; ++u) take_chunk(held[u]);
  }
  for (; chunk < chunks; chunk += kThreads)
    take_chunk(device::load_once<Vector<X, kChunk>>(body + chunk * kChunk));
  if (thread < head) take_element(thread);
  if (tail + thread < p.classes) take_element(tail + thread);

  // The block's largest value, then the sums relative to it.
  float* scratch = device::dynamic_shared<float>();  // [kScratchValues][kWarps]
  float largest = device::warp_max(part.largest);
  if (device::lane_index() == 0) device::shared_store(&scratch[device::warp_index()], largest);
  device::sync_threads();
  const int lane = device::lane_index();
  largest =
      device::warp_max(lane < kWarps ? device::shared_load<float>(&scratch[lane]) : -kInfinity);
  const float base = largest == -kInfinity ? 0.0f : largest;
  float sums[2] = {part.sum * exponential_of<X>(part.largest - base), part.shifted};
  device::block_sum<kWarps>(sums, scratch + kWarps);
  if (thread != 0) return;

  const float log_sum = device::natural_log(sums[0]);
  // Relative to the largest logit, since lse − logit would cancel where the loss is small.
  float loss = log_sum - (wanted - largest);
  if (smooth) loss -= p.label_smoothing * (sums[1] / static_cast<float>(p.classes));
  if (p.z_loss > 0.0f) loss += p.z_loss * (largest + log_sum) * (largest + log_sum);
  p.loss[row] = valid ? loss : __builtin_nanf("");
  p.largest[row] = largest;
  p.log_sum[row] = log_sum;
}

// In place, dlogits being logits, every element is read and then written by one thread. That is why
// the loads are ordinary ones: those of load_once are for memory that the kernel does not write.
template <class X, int kThreads>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kThreads, kBlocks<kThreads>)
    cross_entropy_backward_kernel(CrossEntropyBackward p) {
  using device::Vector;
  constexpr int kChunk = device::kVectorElements<X>;

  const int64_t row = device::block_index_x();
  const int thread = device::thread_index();
  const int64_t target = p.targets[row];
  const X* x = row_at(static_cast<const X*>(p.logits), p.places, row);
  X* dx = row_at(static_cast<X*>(p.dlogits), p.gradient_places, row);

  // Where the two rows lie differently against 16 bytes, all is head.
  const int64_t head = elements_to_boundary(dx, p.vocab) == elements_to_boundary(x, p.vocab)
                           ? elements_to_boundary(dx, p.vocab)
                           : p.vocab;
  const int64_t chunks = (p.vocab - head) / kChunk;
  const int64_t tail = head + chunks * kChunk;
  X* dx_body = dx + head;

  // Columns from `first` on that get no gradient.
  const auto write_zeros = [&](int64_t first) {
    const X zero = device::from_float<X>(0.0f);
    Vector<X, kChunk> zeros;
    LLMJP_UNROLL
    for (int i = 0; i < kChunk; ++i) zeros.elements[i] = zero;
    for (int64_t column = first + thread; column < head; column += kThreads) dx[column] = zero;
    const int64_t first_chunk = first <= head ? 0 : (first - head + kChunk - 1) / kChunk;
    for (int64_t chunk = first_chunk + thread; chunk < chunks; chunk += kThreads)
      device::store(dx_body + chunk * kChunk, zeros);
    if (tail + thread < p.vocab && tail + thread >= first) dx[tail + thread] = zero;
  };

  // Columns that get a gradient.
  const int64_t counted = target == p.ignore_index ? 0 : p.classes;
  const bool valid = target >= 0 && target < p.classes;
  const float g = valid ? p.dloss[row * p.dloss_stride] : __builtin_nanf("");
  const float largest = p.largest[row];
  const float log_sum = p.log_sum[row];
  const float scale = g * (1.0f + 2.0f * p.z_loss * (largest + log_sum));
  const float spread = g * (p.label_smoothing / static_cast<float>(p.classes));
  const float hit = g * (1.0f - p.label_smoothing);

  const auto gradient = [&](float value) {
    return scale * exponential_of<X>(value - largest - log_sum) - spread;
  };
  const auto write_element = [&](int64_t column) {
    const float value = gradient(device::to_float(x[column]));
    dx[column] = device::from_float<X>(column == target ? value - hit : value);
  };
  const auto write_chunk = [&](int64_t chunk, const Vector<X, kChunk>& held) {
    const int64_t column = head + chunk * kChunk;
    float values[kChunk];
    device::to_floats(held, values);
    LLMJP_UNROLL
    for (int i = 0; i < kChunk; ++i) values[i] = gradient(values[i]);
    if (target >= column && target < column + kChunk) {
      LLMJP_UNROLL
      for (int i = 0; i < kChunk; ++i) values[i] -= column + i == target ? hit : 0.0f;
    }
    // Whatever stands in the padding, even NaN, has no part.
    if (column + kChunk > p.classes) {
      LLMJP_UNROLL
      for (int i = 0; i < kChunk; ++i) values[i] = column + i < p.classes ? values[i] : 0.0f;
    }
    device::store(dx_body + chunk * kChunk, device::from_floats<X>(values));
  };

  // Chunks that hold a valid class; the last of them may reach into the padding.
  const int64_t with_classes = counted <= head ? 0 : (counted - head + kChunk - 1) / kChunk;
  const int64_t last = with_classes < chunks ? with_classes : chunks;
  const X* body = x + head;
  int64_t chunk = thread;
  for (; chunk + (kUnroll - 1) * kThreads < last; chunk += kUnroll * kThreads) {
    Vector<X, kChunk> held[kUnroll];
    LLMJP_UNROLL
    for (int u = 0; u < kUnroll; ++u)
      held[u] = device::load<Vector<X, kChunk>>(body + (chunk + u * kThreads) * kChunk);
    LLMJP_UNROLL
    for (int u = 0; u < kUnroll; ++u) write_chunk(chunk + u * kThreads, held[u]);
  }
  for (; chunk < last; chunk += kThreads)
    write_chunk(chunk, device::load<Vector<X, kChunk>>(body + chunk * kChunk));
  for (int64_t column = thread; column < head && column < counted; column += kThreads)
    write_element(column);
  if (tail + thread < counted) write_element(tail + thread);
  write_zeros(counted);
}

}  // namespace llmjp::cross_entropy
