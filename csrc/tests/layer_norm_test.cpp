// The LayerNorm kernels on buffers of exactly the size they may touch, so that the sanitized build
// finds any access beyond, and with every output poisoned, so that one left unwritten shows. Values
// are checked against the formulas in double.
#include <cmath>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "device/dtype.h"
#include "device/philox.h"
#include "norm/layer_norm.h"
#include "tests/buffer.h"
#include "tests/check.h"

namespace {

using namespace llmjp;
using tests::Buffer;
using tests::check_close;
using tests::kType;

template <class X, class R, class W>
void check_layer_norm(int64_t rows, int64_t width, bool aligned, bool with_residual,
                      double tolerance, bool centred = true, float dropout = 0.0f) {
  std::mt19937 random(static_cast<uint32_t>(rows * 100003 + width));
  const std::string shape = std::to_string(rows) + " x " + std::to_string(width);
  const int64_t offset = aligned ? 0 : 1;
  Buffer<X> x(rows * width, offset), dy(rows * width, offset), y(rows * width, offset),
      dx(rows * width, offset);
  Buffer<R> residual(rows * width, offset), r(rows * width, offset), dr(rows * width, offset),
      dr_sum(rows * width, offset);
  Buffer<W> weight(width, offset), bias(width, offset), dweight(width, offset),
      dbias(width, offset);
  Buffer<float> mean(rows), rstd(rows);
  x.draw(random, 0.5f, 1.0f), dy.draw(random, 0.5f, 1.0f), residual.draw(random, 0.5f, 1.0f),
      dr.draw(random, 0.5f, 1.0f), weight.draw(random, 0.5f, 1.0f), bias.draw(random, 0.5f, 1.0f);

  const int64_t random_state[] = {1234567, 89};
  // What dropout multiplies element i of a row with.
  const auto kept = [&](int64_t row, int64_t i) -> double {
    if (dropout == 0.0f) return 1.0;
    const auto drawn = device::philox(static_cast<uint64_t>(random_state[0]),
                                      static_cast<uint64_t>(random_state[1]),
                                      static_cast<uint64_t>(row * ((width + 3) / 4) + i / 4));
    return device::to_uniform(drawn.words[i % 4]) < dropout ? 0.0 : 1.0 / (1.0 - dropout);
  };

  norm::LayerNormForward forward{};
  norm::LayerNormBackward backward{};
  forward.x = x.data();
  forward.residual = with_residual ? residual.data() : nullptr;
  forward.weight = weight.data();
  forward.bias = centred ? bias.data() : nullptr;
  forward.y = y.data();
  forward.r = with_residual ? r.data() : nullptr;
  forward.mean = centred ? mean.data() : nullptr;
  forward.rstd = rstd.data();
  forward.rows = rows;
  forward.width = forward.x_stride = forward.residual_stride = width;
  forward.random = backward.random = dropout > 0.0f ? random_state : nullptr;
  forward.dropout = backward.dropout = dropout;
  forward.eps = 1e-5f;
  forward.centred = backward.centred = centred;
  forward.x_type = kType<X>;
  forward.row_type = kType<R>;
  forward.weight_type = kType<W>;
  norm::layer_norm_forward(forward, nullptr);

  backward.dy = dy.data();
  backward.dr = with_residual ? dr.data() : nullptr;
  backward.r = with_residual ? static_cast<const void*>(r.data()) : x.data();
  backward.weight = weight.data();
  backward.mean = forward.mean;
  backward.rstd = rstd.data();
  backward.dr_sum = dr_sum.data();
  backward.dx = dropout > 0.0f ? dx.data() : nullptr;
  backward.dweight = dweight.data();
  backward.dbias = centred ? dbias.data() : nullptr;
  backward.rows = rows;
  backward.width = backward.dy_stride = backward.dr_stride = backward.r_stride = width;
  backward.x_type = kType<X>;
  backward.row_type = kType<R>;
  backward.weight_type = kType<W>;
  Buffer<float> workspace(norm::layer_norm_backward_workspace(backward));
  backward.workspace = workspace.data();
  norm::layer_norm_backward(backward, nullptr);

  std::vector<double> dweight_sum(width, 0.0), dbias_sum(width, 0.0);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t start = row * width;
    const auto value = [&](int64_t i) { return with_residual ? r[start + i] : x[start + i]; };
    double expected_mean = 0.0, variance = 0.0;
    for (int64_t i = 0; i < width; ++i) {
      if (with_residual)
        check_close(r[start + i], kept(row, i) * x[start + i] + residual[start + i], tolerance,
                    shape + " r");
      if (centred) expected_mean += value(i) / static_cast<double>(width);
    }
    for (int64_t i = 0; i < width; ++i)
      variance += (value(i) - expected_mean) * (value(i) - expected_mean);
    const double expected_rstd = 1.0 / std::sqrt(variance / static_cast<double>(width) + 1e-5);
    double sum_g = 0.0, sum_gx = 0.0;
    for (int64_t i = 0; i < width; ++i) {
      const double normalised = (value(i) - expected_mean) * expected_rstd;
      check_close(y[start + i], normalised * weight[i] + (centred ? bias[i] : 0.0), tolerance,
                  shape + " y");
      if (centred) sum_g += dy[start + i] * weight[i];
      sum_gx += dy[start + i] * weight[i] * normalised;
      dweight_sum[i] += dy[start + i] * normalised;
      dbias_sum[i] += dy[start + i];
    }
    for (int64_t i = 0; i < width; ++i) {
      const double normalised = (value(i) - expected_mean) * expected_rstd;
      const double n = static_cast<double>(width);
      const double expected =
          expected_rstd * (dy[start + i] * weight[i] - sum_g / n - normalised * sum_gx / n) +
          (with_residual ? dr[start + i] : 0.0);
      check_close(dr_sum[start + i], expected, tolerance, shape + " dr_sum");
      if (dropout > 0.0f)
        check_close(dx[start + i], kept(row, i) * expected, tolerance, shape + " dx");
    }
  }
  for (int64_t i = 0; i < width; ++i) {
    check_close(dweight[i], dweight_sum[i], tolerance, shape + " dweight");
    if (centred) check_close(dbias[i], dbias_sum[i], tolerance, shape + " dbias");
  }
}

// As many multiprocessors as blocks that share rows need to run at once; of the blocks that these
// have room for by the kernel's launch bounds only `resident` may run, if that is given.
class ManyMultiprocessors {
 public:
  explicit ManyMultiprocessors(const char* resident = nullptr) {
    setenv("LLMJP_SIMT_MULTIPROCESSORS", "12", 1);
    if (resident != nullptr) setenv("LLMJP_SIMT_RESIDENT_BLOCKS", resident, 1);
  }
  ~ManyMultiprocessors() {
    unsetenv("LLMJP_SIMT_MULTIPROCESSORS");
    unsetenv("LLMJP_SIMT_RESIDENT_BLOCKS");
  }
};

// One width for every tile of forward and backward, the wide kernels beyond, and rows that fill no
// vector.
TEST(layer_norm_float32_stays_in_bounds_for_every_tile) {
  for (int64_t width : {1, 4, 256, 260, 1000, 1024, 2048, 2500, 4096, 6144, 8192, 12288}) {
    check_layer_norm<float, float, float>(5, width, true, width % 8 == 0, 2e-5);
  }
}

TEST(layer_norm_bfloat16_stays_in_bounds_for_every_tile) {
  for (int64_t width : {8, 512, 1024, 1600, 3072, 4096, 5120, 8192, 12288, 16384, 24576, 24584}) {
    check_layer_norm<device::bfloat16, device::bfloat16, device::bfloat16>(3, width, true,
                                                                           width % 16 == 0, 2e-2);
  }
}

TEST(layer_norm_of_unaligned_rows_stays_in_bounds) {
  for (int64_t width : {1, 7, 255, 1023, 1024}) {
    check_layer_norm<float, float, float>(3, width, false, true, 2e-5);
    check_layer_norm<device::float16, device::float16, float>(3, width, false, false, 4e-3);
  }
}

TEST(layer_norm_with_a_float32_row_stays_in_bounds) {
  for (int64_t width : {4, 1000, 5120, 16388}) {
    check_layer_norm<device::bfloat16, float, float>(3, width, true, true, 2e-2);
  }
}

TEST(layer_norm_walks_over_more_rows_than_groups) {
  check_layer_norm<float, float, float>(150, 64, true, true, 2e-5);
  check_layer_norm<device::bfloat16, device::bfloat16, float>(33, 2048, true, true, 2e-2);
  check_layer_norm<device::float16, device::float16, device::float16>(67, 33, true, false, 1e-2);
}

// Held in registers alone, with shared memory, and partly read again; backward shared among five to
// eleven blocks, whose last has less than the others or not.
TEST(layer_norm_of_wide_rows_stays_in_bounds) {
  const ManyMultiprocessors many;
  check_layer_norm<device::bfloat16, device::bfloat16, float>(3, 24584, true, false, 2e-2);
  check_layer_norm<device::bfloat16, device::bfloat16, float>(1, 65544, true, true, 2e-2, false);
  check_layer_norm<float, float, float>(2, 65536, true, false, 4e-5);
  check_layer_norm<device::bfloat16, float, float>(1, 65536, true, true, 3e-2, true, 0.2f);
}

// Of one shared row's sums a block must not take those of the row before or after.
TEST(layer_norm_of_many_wide_rows_keeps_rows_apart) {
  const ManyMultiprocessors many;
  check_layer_norm<device::float16, device::float16, device::float16>(40, 16400, true, false, 1e-2);
}

// Two groups of three blocks and one, where the plan has four.
TEST(layer_norm_of_wide_rows_fits_into_fewer_resident_blocks) {
  for (const char* resident : {"7", "3"}) {
    const ManyMultiprocessors many(resident);
    check_layer_norm<device::float16, device::float16, float>(11, 16400, true, true, 1e-2);
  }
}

TEST(layer_norm_of_wide_rows_loops_where_blocks_cannot_share_them) {
  check_layer_norm<float, float, float>(3, 65536, true, true, 4e-5);
  check_layer_norm<device::bfloat16, device::bfloat16, float>(2, 65535, false, true, 2e-2);
}

TEST(layer_norm_with_dropout_stays_in_bounds) {
  for (int64_t width : {1, 7, 260, 1024, 2500, 12288}) {
    check_layer_norm<float, float, float>(5, width, width % 8 == 0, true, 4e-5, true, 0.3f);
    check_layer_norm<device::bfloat16, float, float>(3, width, true, true, 3e-2, false, 0.1f);
  }
  check_layer_norm<device::float16, device::float16, float>(150, 64, true, true, 2e-2, true, 0.5f);
}

TEST(rms_norm_stays_in_bounds) {
  for (int64_t width : {1, 7, 256, 1000, 1023, 2500, 12288, 24584}) {
    check_layer_norm<float, float, float>(5, width, true, width % 8 == 0, 2e-5, false);
    check_layer_norm<device::bfloat16, float, float>(3, width, false, true, 2e-2, false);
  }
  check_layer_norm<device::float16, device::float16, float>(150, 64, true, true, 1e-2, false);
}

}  // namespace
