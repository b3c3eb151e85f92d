// The bias_gelu kernels on buffers of exactly the size they may touch, aligned and not, so that the
// sanitized build finds any access beyond; outputs are poisoned, so that one left unwritten shows.
// Values are checked against the formulas in double.
#include "activation/bias_gelu.h"

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "activation/row_plan.h"
#include "device/dtype.h"
#include "tests/buffer.h"
#include "tests/check.h"

namespace {

using namespace llmjp;
using tests::Buffer;
using tests::check_close;
using tests::kType;

double gelu(double u, bool tanh) {
  if (!tanh) return 0.5 * u * (1.0 + std::erf(u * std::sqrt(0.5)));
  return 0.5 * u * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (u + 0.044715 * u * u * u)));
}

template <class X, class B>
void check_bias_gelu(int64_t rows, int64_t width, bool aligned, bool with_bias, bool tanh,
                     double tolerance) {
  std::mt19937 random(static_cast<uint32_t>(rows * 100003 + width));
  const std::string shape = std::to_string(rows) + " x " + std::to_string(width);
  const int64_t offset = aligned ? 0 : 1;
  Buffer<X> x(rows * width, offset), dy(rows * width, offset), y(rows * width, offset),
      dx(rows * width, offset);
  Buffer<B> bias(width, offset), dbias(width, offset);
  x.draw(random), dy.draw(random), bias.draw(random);

  activation::BiasGeluForward forward{};
  forward.x = x.data();
  forward.bias = with_bias ? bias.data() : nullptr;
  forward.y = y.data();
  forward.rows = rows;
  forward.width = forward.x_stride = width;
  forward.tanh = tanh;
  forward.x_type = kType<X>;
  forward.bias_type = with_bias ? kType<B> : kType<X>;
  activation::bias_gelu_forward(forward, nullptr);

  activation::BiasGeluBackward backward{};
  backward.dy = dy.data();
  backward.x = x.data();
  backward.bias = forward.bias;
  backward.dx = dx.data();
  backward.dbias = with_bias ? dbias.data() : nullptr;
  backward.rows = rows;
  backward.width = backward.dy_stride = backward.x_stride = width;
  backward.tanh = tanh;
  backward.x_type = kType<X>;
  backward.bias_type = forward.bias_type;
  Buffer<float> workspace(activation::bias_gelu_backward_workspace(backward));
  backward.workspace = workspace.data();
  activation::bias_gelu_backward(backward, nullptr);

  std::vector<double> sums(width, 0.0);
  for (int64_t i = 0; i < rows * width; ++i) {
    const double u = x[i] + (with_bias ? bias[i % width] : 0.0);
    check_close(y[i], gelu(u, tanh), tolerance, shape + " y");
    const double step = 1e-4;
    const double slope = (gelu(u + step, tanh) - gelu(u - step, tanh)) / (2.0 * step);
    check_close(dx[i], dy[i] * slope, tolerance, shape + " dx");
    sums[i % width] += dy[i] * slope;
  }
  for (int64_t i = 0; with_bias && i < width; ++i)
    check_close(dbias[i], sums[i], tolerance, shape + " dbias");
}

TEST(bias_gelu_stays_in_bounds) {
  for (bool tanh : {false, true}) {
    for (int64_t width : {1, 7, 8, 33, 128, 264, 1000}) {
      for (bool aligned : {true, false}) {
        check_bias_gelu<float, float>(5, width, aligned, true, tanh, 2e-5);
        check_bias_gelu<device::bfloat16, float>(3, width, aligned, true, tanh, 2e-2);
        check_bias_gelu<device::float16, device::float16>(4, width, aligned, true, tanh, 4e-3);
      }
    }
  }
}

TEST(bias_gelu_without_a_bias_stays_in_bounds) {
  for (int64_t rows : {1, 5}) {
    for (int64_t width : {3, 64, 1032}) {
      check_bias_gelu<float, float>(rows, width, true, false, false, 2e-5);
      check_bias_gelu<device::bfloat16, device::bfloat16>(rows, width, rows == 1, false, true,
                                                          2e-2);
    }
  }
}

// Rows of an op without a bias are one long row, of which a warp has four parts on their way.
TEST(a_long_row_is_split_into_parts_of_whole_chunks) {
  struct Case {
    int64_t rows, width, split_rows, split_width;
  };
  for (const Case& each : {Case{1, 4096, 4, 1024}, Case{1, 48, 2, 24}, Case{1, 20, 1, 20},
                           Case{1, 1023, 1, 1023}, Case{3, 4096, 3, 4096}}) {
    int64_t rows = each.rows, width = each.width, stride = 5000;
    activation::split_row(rows, width, {&stride});
    CHECK_EQUAL(rows, each.split_rows);
    CHECK_EQUAL(width, each.split_width);
    CHECK_EQUAL(stride, each.split_rows == each.rows ? 5000 : width);
  }
}

TEST(bias_gelu_walks_over_more_rows_than_groups) {
  check_bias_gelu<float, float>(301, 16, true, true, false, 2e-5);
  check_bias_gelu<device::bfloat16, device::bfloat16>(203, 520, true, true, true, 4e-2);
  check_bias_gelu<device::float16, float>(99, 33, true, true, false, 1e-2);
}

}  // namespace
