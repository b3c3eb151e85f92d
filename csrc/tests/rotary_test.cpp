// The rotary kernel on buffers of exactly the size it may touch, aligned and not, so that the
// sanitized build finds any access beyond; outputs are poisoned, so that one left unwritten shows.
// Values are checked against the formulas in double.
#include "rotary/rotary.h"

#include <random>
#include <string>

#include "tests/buffer.h"
#include "tests/check.h"

namespace {

using namespace llmjp;
using tests::Buffer;
using tests::check_close;
using tests::kType;

struct Shape {
  int64_t batch, tokens, heads, kv_heads, head_dim, pairs;
};

template <class T, class A>
void check_rotary(const Shape& s, bool aligned, bool interleaved, bool in_place, double tolerance) {
  std::mt19937 random(static_cast<uint32_t>(s.head_dim * 1009 + s.pairs));
  const int64_t offset = aligned ? 0 : 1;
  const int64_t token = (s.heads + s.kv_heads) * s.head_dim;  // queries, then keys, packed
  const int64_t count = s.batch * s.tokens * token;
  Buffer<T> x(count, offset), before(count, offset), y(count, offset);
  Buffer<A> cos(s.tokens * s.pairs, offset), sin(s.tokens * s.pairs, offset);
  x.draw(random), cos.draw(random), sin.draw(random);
  std::copy_n(x.data(), count, before.data());

  rotary::RotaryForward p{};
  T* out = in_place ? x.data() : y.data();
  const rotary::Strides strides{s.tokens * token, token, s.head_dim};
  p.q = {x.data(), out, s.heads, strides, strides};
  const int64_t keys = s.heads * s.head_dim;
  p.k = {x.data() + keys, out + keys, s.kv_heads, strides, strides};
  p.cos = cos.data();
  p.sin = sin.data();
  p.batch = s.batch;
  p.tokens = s.tokens;
  p.head_dim = s.head_dim;
  p.pairs = s.pairs;
  p.interleaved = interleaved;
  p.in_place = in_place;
  p.type = kType<T>;
  p.angle_type = kType<A>;
  rotary::rotary_forward(p, nullptr);

  for (int64_t i = 0; i < count; ++i) {
    const int64_t element = i % s.head_dim;
    const int64_t row = i / token % s.tokens * s.pairs;
    double expected = before[i];
    if (element < 2 * s.pairs) {
      const int64_t pair = interleaved ? element / 2 : element % s.pairs;
      const bool is_first = interleaved ? element % 2 == 0 : element < s.pairs;
      const int64_t other = i + (is_first ? 1 : -1) * (interleaved ? 1 : s.pairs);
      expected = before[i] * cos[row + pair] +
                 (is_first ? -before[other] : before[other]) * sin[row + pair];
    }
    check_close(device::to_float(out[i]), expected, tolerance,
                "head_dim " + std::to_string(s.head_dim) + ", element " + std::to_string(i));
  }
}

TEST(rotary_stays_in_bounds) {
  for (const Shape& shape :
       {Shape{2, 3, 4, 1, 64, 32}, Shape{1, 2, 33, 2, 32, 8}, Shape{1, 3, 2, 2, 37, 9},
        Shape{2, 1, 1, 0, 256, 128}, Shape{1, 1, 70, 1, 16, 8}}) {
    for (bool aligned : {true, false}) {
      for (bool interleaved : {true, false}) {
        for (bool in_place : {true, false}) {
          check_rotary<float, float>(shape, aligned, interleaved, in_place, 2e-6);
          check_rotary<device::bfloat16, float>(shape, aligned, interleaved, in_place, 3e-2);
          check_rotary<device::float16, device::float16>(shape, aligned, interleaved, in_place,
                                                         4e-3);
        }
      }
    }
  }
}

}  // namespace
