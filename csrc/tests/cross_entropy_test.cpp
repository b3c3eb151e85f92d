// The cross-entropy kernels on buffers of exactly the size they may touch, at every place against
// 16 bytes, so that the sanitized build finds any access beyond; outputs are poisoned, so that one
// left unwritten shows. Values are checked against the formulas in double.
#include "cross_entropy/cross_entropy.h"

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "device/dtype.h"
#include "tests/buffer.h"
#include "tests/check.h"

namespace {

using namespace llmjp;
using tests::Buffer;
using tests::check_close;

// One row forward and backward; `gradient_offset` equal to `offset` lets the vector path run.
template <class T>
void check_row(host::DType type, int64_t vocab, int64_t classes, int64_t offset,
               int64_t gradient_offset, bool in_place, double tolerance) {
  std::mt19937 random(static_cast<uint32_t>(vocab * 31 + classes * 7 + offset));
  std::normal_distribution<float> normal(0.0f, 3.0f);
  Buffer<T> logits(vocab, offset);
  for (int64_t i = 0; i < vocab; ++i)
    logits.data()[i] = device::from_float<T>(i < classes ? normal(random) : NAN);
  const int64_t target = classes - 1;
  float loss = NAN, largest = NAN, log_sum = NAN;
  const float g = 1.5f, smoothing = 0.1f, z_loss = 0.01f;

  double most = -INFINITY, sum = 0.0, mean = 0.0;
  std::vector<double> x(classes);
  for (int64_t i = 0; i < classes; ++i) {
    x[i] = logits[i];
    most = std::max(most, x[i]);
    mean += x[i] / static_cast<double>(classes);
  }
  for (double value : x) sum += std::exp(value - most);
  const double lse = most + std::log(sum);

  cross_entropy::CrossEntropyForward forward{};
  forward.logits = logits.data();
  forward.targets = &target;
  forward.loss = &loss;
  forward.largest = &largest;
  forward.log_sum = &log_sum;
  forward.places = {1, vocab, 0};
  forward.rows = 1;
  forward.classes = classes;
  forward.ignore_index = -100;
  forward.label_smoothing = smoothing;
  forward.z_loss = z_loss;
  forward.type = type;
  cross_entropy::cross_entropy_forward(forward, nullptr);
  const std::string what = std::to_string(classes) + " of " + std::to_string(vocab) +
                           " at offset " + std::to_string(offset);
  check_close(loss, lse - (1.0 - smoothing) * x[target] - smoothing * mean + z_loss * lse * lse,
              1e-5, what + ": loss");
  check_close(static_cast<double>(largest) + log_sum, lse, 1e-5, what + ": lse");

  Buffer<T> separate(vocab, gradient_offset);
  T* gradient = in_place ? logits.data() : separate.data();
  cross_entropy::CrossEntropyBackward backward{};
  backward.dloss = &g;
  backward.logits = logits.data();
  backward.targets = &target;
  backward.largest = &largest;
  backward.log_sum = &log_sum;
  backward.dlogits = gradient;
  backward.places = backward.gradient_places = {1, vocab, 0};
  backward.rows = 1;
  backward.vocab = vocab;
  backward.classes = classes;
  backward.ignore_index = -100;
  backward.label_smoothing = smoothing;
  backward.z_loss = z_loss;
  backward.type = type;
  cross_entropy::cross_entropy_backward(backward, nullptr);
  for (int64_t i = 0; i < vocab; ++i) {
    const double p = i < classes ? std::exp(x[i] - lse) : 0.0;
    const double wanted = (i == target ? 1.0 - smoothing : 0.0) + smoothing / classes;
    const double expected = i < classes ? g * ((1.0 + 2.0 * z_loss * lse) * p - wanted) : 0.0;
    check_close(device::to_float(gradient[i]), expected, tolerance, what + ": gradient");
  }
}

TEST(cross_entropy_stays_in_bounds_at_every_alignment) {
  for (int64_t vocab : {1, 3, 8, 17, 100, 1000}) {
    for (int64_t offset = 0; offset < 4; ++offset) {
      check_row<float>(host::DType::kFloat32, vocab, vocab, offset, offset, false, 1e-5);
    }
    for (int64_t offset = 0; offset < 8; ++offset) {
      check_row<device::bfloat16>(host::DType::kBFloat16, vocab, vocab, offset, offset, false,
                                  1e-2);
    }
  }
}

TEST(cross_entropy_in_place_and_with_padding_stays_in_bounds) {
  for (int64_t classes : {1, 2, 5, 8, 9, 16, 29, 30}) {
    for (int64_t offset : {0, 5}) {
      check_row<device::float16>(host::DType::kFloat16, 30, classes, offset, offset, true, 2e-3);
      check_row<device::float16>(host::DType::kFloat16, 30, classes, offset, 7 - offset, false,
                                 2e-3);
    }
  }
}

TEST(cross_entropy_of_long_rows_stays_in_bounds) {
  for (int64_t vocab : {2049, 9001}) {
    check_row<float>(host::DType::kFloat32, vocab, vocab, 1, 1, true, 1e-5);
    check_row<device::bfloat16>(host::DType::kBFloat16, vocab, vocab - 100, 3, 2, false, 1e-2);
    check_row<device::bfloat16>(host::DType::kBFloat16, 4 * vocab, vocab, 3, 3, true, 1e-2);
  }
}

}  // namespace
