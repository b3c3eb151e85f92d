// The swiglu kernels on buffers of exactly the size they may touch, aligned and not, so that the
// sanitized build finds any access beyond; outputs are poisoned, so that one left unwritten shows.
// Values are checked against the formulas in double.
#include "activation/swiglu.h"

#include <cmath>
#include <random>
#include <string>

#include "device/dtype.h"
#include "tests/buffer.h"
#include "tests/check.h"

namespace {

using namespace llmjp;
using tests::Buffer;
using tests::check_close;
using tests::kType;

template <class T>
void check_swiglu(int64_t rows, int64_t width, bool aligned, double tolerance) {
  std::mt19937 random(static_cast<uint32_t>(rows * 100003 + width));
  const std::string shape = std::to_string(rows) + " x " + std::to_string(width);
  const int64_t count = rows * width;
  const int64_t offset = aligned ? 0 : 1;
  Buffer<T> gate(count, offset), up(count, offset), dy(count, offset), y(count, offset),
      dgate(count, offset), dup(count, offset);
  gate.draw(random), up.draw(random), dy.draw(random);

  activation::SwigluForward forward{};
  forward.gate = gate.data();
  forward.up = up.data();
  forward.y = y.data();
  forward.rows = rows;
  forward.width = forward.gate_stride = forward.up_stride = width;
  forward.type = kType<T>;
  activation::swiglu_forward(forward, nullptr);

  activation::SwigluBackward backward{};
  backward.dy = dy.data();
  backward.gate = gate.data();
  backward.up = up.data();
  backward.dgate = dgate.data();
  backward.dup = dup.data();
  backward.rows = rows;
  backward.width = backward.dy_stride = backward.gate_stride = backward.up_stride = width;
  backward.type = kType<T>;
  activation::swiglu_backward(backward, nullptr);

  for (int64_t i = 0; i < count; ++i) {
    const double share = 1.0 / (1.0 + std::exp(-gate[i]));
    const double slope = share * (1.0 + gate[i] * (1.0 - share));
    check_close(y[i], gate[i] * share * up[i], tolerance, shape + " y");
    check_close(dgate[i], dy[i] * up[i] * slope, tolerance, shape + " dgate");
    check_close(dup[i], dy[i] * gate[i] * share, tolerance, shape + " dup");
  }
}

TEST(swiglu_stays_in_bounds) {
  for (int64_t rows : {1, 2, 5}) {
    for (int64_t width : {1, 7, 8, 33, 128, 264, 1000}) {
      for (bool aligned : {true, false}) {
        check_swiglu<float>(rows, width, aligned, 2e-6);
        check_swiglu<device::bfloat16>(rows, width, aligned, 1e-2);
        check_swiglu<device::float16>(rows, width, aligned, 1e-3);
      }
    }
  }
}

}  // namespace
