#include "rotary/rotary_cpu.h"

#include <cstring>

#include "host/cpu_dispatch.h"

namespace llmjp::rotary {
namespace {

// A token's angles, of the turn back with the other sign.
struct Angles {
  float cos[kMostHeadDim / 2];
  float sin[kMostHeadDim / 2];
};

template <class V>
struct Turned {
  typename V::Floats first;
  typename V::Floats second;
};

template <class V>
LLMJP_CPU_INLINE Turned<V> turned(typename V::Floats x1, typename V::Floats x2,
                                  typename V::Floats cos, typename V::Floats sin) {
  return {x1 * cos - x2 * sin, x2 * cos + x1 * sin};
}

// Pairs i and i + pairs of a head; y may be x.
template <class V, class X>
LLMJP_CPU_INLINE void turn_halves(const X* x, X* y, const Angles& angles, int64_t pairs) {
  int64_t i = 0;
  for (; i + V::kLanes <= pairs; i += V::kLanes) {
    const auto t = turned<V>(V::load(x + i), V::load(x + pairs + i), V::load(angles.cos + i),
                             V::load(angles.sin + i));
    V::store(y + i, t.first);
    V::store(y + pairs + i, t.second);
  }
  if (i < pairs) {
    const int64_t rest = pairs - i;
    const auto t = turned<V>(
        V::load_some(x + i, rest, 0.0f), V::load_some(x + pairs + i, rest, 0.0f),
        V::load_some(angles.cos + i, rest, 0.0f), V::load_some(angles.sin + i, rest, 0.0f));
    V::store_some(y + i, rest, t.first);
    V::store_some(y + pairs + i, rest, t.second);
  }
}

// Pairs 2i and 2i + 1; by way of a copy, in which they are taken apart.
template <class V, class X>
LLMJP_CPU_INLINE void turn_interleaved(const X* x, X* y, const Angles& angles, int64_t pairs) {
  float numbers[kMostHeadDim];
  const int64_t count = 2 * pairs;
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) V::store(numbers + i, V::load(x + i));
  if (i < count) V::store_some(numbers + i, count - i, V::load_some(x + i, count - i, 0.0f));
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const float x1 = numbers[2 * pair];
    const float x2 = numbers[2 * pair + 1];
    numbers[2 * pair] = x1 * angles.cos[pair] - x2 * angles.sin[pair];
    numbers[2 * pair + 1] = x2 * angles.cos[pair] + x1 * angles.sin[pair];
  }
  for (i = 0; i + V::kLanes <= count; i += V::kLanes) V::store(y + i, V::load(numbers + i));
  if (i < count) V::store_some(y + i, count - i, V::load_some(numbers + i, count - i, 0.0f));
}

template <class V, class X>
LLMJP_CPU_INLINE void turn_token(const RotaryForward& p, const Operand& operand, int64_t batch,
                                 int64_t token, const Angles& angles) {
  const auto place = [&](const Strides& strides) {
    return batch * strides.batch + token * strides.token;
  };
  const X* x = static_cast<const X*>(operand.x) + place(operand.x_strides);
  X* y = static_cast<X*>(operand.y) + place(operand.y_strides);
  for (int64_t head = 0; head < operand.heads;
       ++head, x += operand.x_strides.head, y += operand.y_strides.head) {
    if (p.interleaved) {
      turn_interleaved<V>(x, y, angles, p.pairs);
    } else {
      turn_halves<V>(x, y, angles, p.pairs);
    }
    if (!p.in_place) {
      std::memcpy(y + 2 * p.pairs, x + 2 * p.pairs,
                  static_cast<size_t>(p.head_dim - 2 * p.pairs) * sizeof(X));
    }
  }
}

struct Tokens {
  template <class V>
  LLMJP_CPU_INLINE static void run(const RotaryForward& p, int64_t first, int64_t last) {
    host::visit_cpu_type(p.type, [&](auto element) __attribute__((always_inline)) {
      using X = decltype(element);
      for (int64_t i = first; i < last; ++i) {
        const int64_t batch = i / p.tokens;
        const int64_t token = i % p.tokens;
        const int64_t place = batch * p.angle_batch_stride + token * p.pairs;
        Angles angles;
        for (int64_t pair = 0; pair < p.pairs; ++pair) {
          const float sin = static_cast<const float*>(p.sin)[place + pair];
          angles.cos[pair] = static_cast<const float*>(p.cos)[place + pair];
          angles.sin[pair] = p.inverse ? -sin : sin;
        }
        turn_token<V, X>(p, p.q, batch, token, angles);
        turn_token<V, X>(p, p.k, batch, token, angles);
      }
    });
  }
};

}  // namespace

void rotary_tokens(const RotaryForward& params, int64_t first, int64_t last) {
  host::run_vectorised<Tokens>(params, first, last);
}

}  // namespace llmjp::rotary
