// The bias_dropout_add kernels on buffers of exactly the size they may touch, aligned and not, so
// that the sanitized build finds any access beyond; outputs are poisoned, so that one left
// unwritten shows. What is dropped forward is dropped backward; the rest is checked against the
// formulas.
#include "activation/bias_dropout_add.h"

#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "device/dtype.h"
#include "tests/buffer.h"
#include "tests/check.h"

namespace {

using namespace llmjp;
using tests::Buffer;
using tests::check_close;
using tests::kType;

template <class X, class R, class B>
void check_add(int64_t rows, int64_t width, bool aligned, bool with_bias, float share,
               double tolerance) {
  std::mt19937 random(static_cast<uint32_t>(rows * 100003 + width));
  const std::string shape = std::to_string(rows) + " x " + std::to_string(width);
  const int64_t count = rows * width;
  const int64_t offset = aligned ? 0 : 1;
  Buffer<X> x(count, offset), dx(count, offset);
  Buffer<R> residual(count, offset), r(count, offset), dr(count, offset);
  Buffer<B> bias(width, offset), dbias(width, offset);
  x.draw(random), residual.draw(random), dr.draw(random), bias.draw(random);
  const int64_t state[2] = {static_cast<int64_t>(random()), static_cast<int64_t>(random())};

  activation::BiasDropoutAddForward forward{};
  forward.x = x.data();
  forward.bias = with_bias ? bias.data() : nullptr;
  forward.residual = residual.data();
  forward.random = share > 0 ? state : nullptr;
  forward.r = r.data();
  forward.rows = rows;
  forward.width = forward.x_stride = forward.residual_stride = width;
  forward.dropout = share;
  forward.x_type = kType<X>;
  forward.row_type = kType<R>;
  forward.bias_type = kType<B>;
  activation::bias_dropout_add_forward(forward, nullptr);

  activation::BiasDropoutAddBackward backward{};
  backward.dr = dr.data();
  backward.random = forward.random;
  const bool has_dx = share > 0 || !std::is_same_v<X, R>;  // else it is dr
  backward.dx = has_dx ? dx.data() : nullptr;
  backward.dbias = with_bias ? dbias.data() : nullptr;
  backward.rows = rows;
  backward.width = backward.dr_stride = width;
  backward.dropout = share;
  backward.x_type = kType<X>;
  backward.row_type = kType<R>;
  backward.bias_type = kType<B>;
  Buffer<float> workspace(activation::bias_dropout_add_backward_workspace(backward));
  backward.workspace = workspace.data();
  activation::bias_dropout_add_backward(backward, nullptr);

  std::vector<double> sums(width, 0.0);
  const double scale = 1.0 / (1.0 - share);
  int64_t dropped = 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool drops = share > 0 && dx[i] == 0.0;
    dropped += drops;
    const double u = x[i] + (with_bias ? bias[i % width] : 0.0);
    check_close(r[i], (drops ? 0.0 : u * scale) + residual[i], tolerance, shape + " r");
    if (has_dx) check_close(dx[i], drops ? 0.0 : dr[i] * scale, tolerance, shape + " dx");
    sums[i % width] += drops ? 0.0 : dr[i] * scale;
  }
  for (int64_t i = 0; with_bias && i < width; ++i)
    check_close(dbias[i], sums[i], tolerance, shape + " dbias");
  if (share > 0 && count > 200)
    check_close(static_cast<double>(dropped) / count, share, 0.15, shape + " dropped share");
}

TEST(bias_dropout_add_stays_in_bounds) {
  for (float share : {0.0f, 0.5f}) {
    for (int64_t width : {1, 7, 8, 33, 128, 264, 1000}) {
      for (bool aligned : {true, false}) {
        check_add<float, float, float>(5, width, aligned, true, share, 2e-5);
        check_add<device::bfloat16, float, float>(3, width, aligned, true, share, 2e-2);
        check_add<device::float16, device::float16, device::float16>(4, width, aligned, true, share,
                                                                     4e-3);
      }
    }
  }
}

TEST(bias_dropout_add_without_a_bias_stays_in_bounds) {
  for (int64_t rows : {1, 5}) {
    for (int64_t width : {3, 64, 1032}) {
      check_add<float, float, float>(rows, width, true, false, 0.25f, 2e-5);
      check_add<device::bfloat16, device::bfloat16, float>(rows, width, rows == 1, false, 0.0f,
                                                           2e-2);
    }
  }
}

TEST(bias_dropout_add_walks_over_more_rows_than_groups) {
  check_add<float, float, float>(301, 16, true, true, 0.25f, 2e-5);
  check_add<device::bfloat16, device::bfloat16, device::bfloat16>(203, 520, true, true, 0.25f,
                                                                  4e-2);
  check_add<device::float16, float, float>(99, 33, true, true, 0.25f, 1e-2);
}

}  // namespace
