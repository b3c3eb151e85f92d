// The sampling kernel on rows of exactly the size that it may touch, at every place against 16
// bytes, so that the sanitized build finds any access beyond. Each id is checked in double: it must
// be one that the filters keep, and the uniform number that Philox gives for its row must lie in
// its part of the running sum of kept probabilities. Many rows of the same logits so pin down the
// kept set and all of its probabilities.
#include "sampling/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "device/dtype.h"
#include "device/philox.h"
#include "tests/buffer.h"
#include "tests/check.h"

namespace {

using namespace llmjp;
using tests::Buffer;

struct SampleOptions {
  float temperature;
  float top_k;
  float top_p;
  float min_p;
  float repetition_penalty;
};

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr SampleOptions kPlain{1.0f, 0.0f, 1.0f, 0.0f, 1.0f};

// The probability of each id, 0 for those not kept, by sorting.
std::vector<double> probabilities(std::vector<double> x, const SampleOptions& options,
                                  const std::vector<int64_t>& previous) {
  const auto count = static_cast<int64_t>(x.size());
  for (int64_t id : std::set<int64_t>(previous.begin(), previous.end())) {
    if (id >= 0 && id < count)
      x[id] = static_cast<float>(x[id] < 0 ? x[id] * options.repetition_penalty
                                           : x[id] / options.repetition_penalty);
  }
  for (double& value : x) value = std::isnan(value) ? -kInfinity : value;
  const double largest = *std::max_element(x.begin(), x.end());
  std::vector<double> p(count);
  for (int64_t i = 0; i < count; ++i)
    p[i] = x[i] == largest ? 1.0 : std::exp((x[i] - largest) / options.temperature);
  std::vector<double> ordered = x;
  std::sort(ordered.rbegin(), ordered.rend());
  const auto keep_from = [&](double smallest) {
    for (int64_t i = 0; i < count; ++i) p[i] = x[i] < smallest ? 0.0 : p[i];
  };
  if (options.top_k > 0)
    keep_from(ordered[std::min(count, static_cast<int64_t>(options.top_k)) - 1]);
  if (options.top_p < 1.0f) {
    double total = 0.0, before = 0.0;
    for (double value : p) total += value;
    double smallest = largest;
    for (double value : ordered) {
      if (before >= options.top_p * total) break;
      smallest = value;
      before += value == largest ? 1.0 : std::exp((value - largest) / options.temperature);
    }
    keep_from(smallest);
  }
  double total = 0.0;
  for (double& value : p) value = value < options.min_p ? 0.0 : value;
  for (double value : p) total += value;
  for (double& value : p) value /= total;
  return p;
}

void check_id(const std::vector<double>& p, int64_t id, uint64_t seed, uint64_t offset, int64_t row,
              const std::string& what) {
  const std::string where = what + ", row " + std::to_string(row) + ": id " + std::to_string(id);
  if (id < 0 || id >= static_cast<int64_t>(p.size()) || p[id] == 0.0)
    tests::fail(__FILE__, __LINE__, where + " is not kept");
  const auto drawn = device::philox(seed, offset, static_cast<uint64_t>(row));
  const uint64_t bits = uint64_t{drawn.words[0]} << 21 | drawn.words[1] >> 11;
  const double uniform = static_cast<double>(bits) * 0x1p-53;
  double before = 0.0;
  for (int64_t i = 0; i < id; ++i) before += p[i];
  constexpr double kRounding = 2e-6;  // of exp in fp32
  if (uniform < before - kRounding || uniform > before + p[id] + kRounding) {
    tests::fail(__FILE__, __LINE__,
                where + " has [" + std::to_string(before) + ", " + std::to_string(before + p[id]) +
                    "), drawn was " + std::to_string(uniform));
  }
}

// `rows` ids of the same logits, which begin `offset` elements behind 16 bytes.
template <class T>
std::vector<int64_t> draw(Buffer<T>& logits, int64_t classes, int64_t rows,
                          const SampleOptions& options, const std::vector<int64_t>& previous = {},
                          uint64_t seed = 7) {
  std::vector<int64_t> ids(rows, -2);
  const int64_t random_state[] = {static_cast<int64_t>(seed), 11};
  sampling::Sample params{};
  params.logits = logits.data();
  params.previous = previous.data();
  params.previous_length = static_cast<int64_t>(previous.size());
  params.random_state = random_state;
  params.ids = ids.data();
  params.rows = rows;
  params.classes = classes;
  params.temperature.number = options.temperature;
  params.top_k.number = options.top_k;
  params.top_p.number = options.top_p;
  params.min_p.number = options.min_p;
  params.repetition_penalty.number = options.repetition_penalty;
  params.type = tests::kType<T>;
  sampling::sample(params, nullptr);
  return ids;
}

template <class T>
void check_draws(Buffer<T>& logits, int64_t classes, int64_t rows, const SampleOptions& options,
                 const std::vector<int64_t>& previous = {}) {
  std::vector<double> x(classes);
  for (int64_t i = 0; i < classes; ++i) x[i] = logits[i];
  const std::vector<double> p = probabilities(x, options, previous);
  const std::string what = std::to_string(classes) + " ids, T " +
                           std::to_string(options.temperature) + ", k " +
                           std::to_string(options.top_k) + ", p " + std::to_string(options.top_p) +
                           ", m " + std::to_string(options.min_p);
  const std::vector<int64_t> ids = draw(logits, classes, rows, options, previous);
  for (int64_t row = 0; row < rows; ++row) check_id(p, ids[row], 7, 11, row, what);
}

// Each filter alone and all together.
const std::vector<SampleOptions> kFilters = {
    kPlain,
    {0.7f, 0.0f, 1.0f, 0.0f, 1.0f},
    {1.0f, 1.0f, 1.0f, 0.0f, 1.0f},
    {1.0f, 5.0f, 1.0f, 0.0f, 1.0f},
    {2.0f, 1e6f, 1.0f, 0.0f, 1.0f},
    {1.0f, 0.0f, 0.9f, 0.0f, 1.0f},
    {1.5f, 0.0f, 0.999f, 0.0f, 1.0f},
    {1.0f, 0.0f, 1e-6f, 0.0f, 1.0f},
    {1.0f, 0.0f, 1.0f, 0.1f, 1.0f},
    {1.3f, 20.0f, 0.8f, 0.02f, 1.7f},
};

TEST(sample_stays_in_bounds_at_every_alignment) {
  for (int64_t classes : {1, 3, 8, 17, 250}) {
    for (int64_t offset = 0; offset < 8; ++offset) {
      std::mt19937 random(static_cast<uint32_t>(classes * 8 + offset));
      Buffer<device::bfloat16> narrow(classes, offset);
      narrow.draw(random);
      check_draws(narrow, classes, 4, kFilters[(classes + offset) % kFilters.size()],
                  {0, classes - 1, classes, -1});
      if (offset >= 4) continue;
      Buffer<float> wide(classes, offset);
      wide.draw(random);
      check_draws(wide, classes, 4, kFilters[(classes + 3 * offset) % kFilters.size()],
                  {0, classes - 1, classes, -1});
    }
  }
}

TEST(sample_keeps_what_the_filters_keep) {
  std::mt19937 random(5);
  Buffer<float> wide(700, 1);
  wide.draw(random, 0.0f, 3.0f);
  Buffer<device::float16> narrow(700, 3);
  narrow.draw(random, -5.0f, 1.0f);
  std::vector<int64_t> previous(300);
  for (int64_t i = 0; i < 300; ++i) previous[i] = i * 37 % 650 - 5;
  for (const SampleOptions& options : kFilters) {
    check_draws(wide, 690, 12, options, previous);
    check_draws(narrow, 700, 12, options, previous);
  }
}

TEST(sample_of_long_rows_keeps_what_the_filters_keep) {
  std::mt19937 random(6);
  for (const SampleOptions& options : kFilters) {
    Buffer<device::bfloat16> narrow(9001, 5);
    narrow.draw(random, 1.0f, 3.0f);
    check_draws(narrow, 9000, 3, options, {1, 8999, 4000, 4000});
  }
  Buffer<float> wide(6000, 3);
  wide.draw(random, 0.0f, 0.3f);
  // More than the list of candidates holds, and more k than threads.
  check_draws(wide, 6000, 4, {1.0f, 5000.0f, 0.99f, 0.0f, 1.0f});
  check_draws(wide, 6000, 4, {5.0f, 0.0f, 0.99f, 0.0f, 1.0f});
}

// All values in one bin: both signs, all exponents down to 2^-119, neighbours, 0 and denormal ones.
TEST(sample_tells_values_apart_that_share_a_bin) {
  Buffer<float> exponents(600), neighbours(600);
  for (int i = 0; i < 600; ++i) {
    exponents.data()[i] = (i % 2 == 0 ? 1.0f : -1.0f) * std::ldexp(1.0f, -i / 5);
    const auto step = static_cast<float>(i / 3);
    const float near_1 = 1.0f + step * 0x1p-23f;
    neighbours.data()[i] = i % 3 == 0 ? near_1 : i % 3 == 1 ? -near_1 : step * 0x1p-149f;
  }
  for (float k : {2.0f, 150.0f, 201.0f, 299.0f, 300.0f, 301.0f, 399.0f, 470.0f, 590.0f}) {
    for (Buffer<float>* logits : {&exponents, &neighbours}) {
      check_draws(*logits, 600, 8, {1000.0f, k, 1.0f, 0.0f, 1.0f});
      check_draws(*logits, 600, 8, {1000.0f, 0.0f, k / 601.0f, 0.0f, 1.0f});
    }
  }
}

// Many ids of a small weight decide: none may be left out for being small.
TEST(sample_counts_many_small_weights) {
  Buffer<float> logits(5001);
  for (int i = 0; i < 5001; ++i) logits.data()[i] = i == 77 ? 0.0f : i % 5 == 0 ? -8.3f : -8.4f;
  for (float p : {0.4f, 0.5f, 0.6f, 0.9f})
    check_draws(logits, 5001, 12, {1.0f, 0.0f, p, 0.0f, 1.0f});
  check_draws(logits, 5001, 12, {1.0f, 900.0f, 0.9f, 0.0f, 1.0f});
}

TEST(sample_keeps_ties) {
  Buffer<device::bfloat16> logits(5000);
  for (int64_t i = 0; i < 5000; ++i)
    logits.data()[i] = device::from_float<device::bfloat16>(i % 10 == 0  ? 1.0f
                                                            : i % 3 == 0 ? 0.5f
                                                                         : -0.0f);
  check_draws(logits, 5000, 3, {1.0f, 2.0f, 1.0f, 0.0f, 1.0f});
  check_draws(logits, 5000, 3, {1.0f, 501.0f, 1.0f, 0.0f, 1.0f});
  check_draws(logits, 5000, 3, {1.0f, 0.0f, 0.2f, 0.0f, 1.0f});
  for (int64_t i = 0; i < 5000; ++i) logits.data()[i] = device::from_float<device::bfloat16>(2.5f);
  check_draws(logits, 5000, 3, {0.3f, 3.0f, 0.5f, 0.9f, 1.0f});
}

TEST(sample_of_nan_and_infinities) {
  std::mt19937 random(8);
  for (int64_t classes : {40, 9000}) {
    Buffer<device::float16> logits(classes, 1);
    const auto put = [&](int64_t id, float value) {
      logits.data()[id] = device::from_float<device::float16>(value);
    };
    // NaN everywhere: no id.
    for (const SampleOptions& options : {kPlain, kFilters[9], SampleOptions{0, 0, 1, 0, 1}}) {
      for (int64_t i = 0; i < classes; ++i) put(i, i % 2 == 0 ? NAN : -kInfinity);
      CHECK_EQUAL(draw(logits, classes, 2, options)[1], -1);
      put(classes - 1, -70.0f);
      CHECK_EQUAL(draw(logits, classes, 2, options)[1], classes - 1);
      logits.draw(random);
      put(3, kInfinity);
      put(classes - 2, kInfinity);
      for (int64_t id : draw(logits, classes, 3, options)) CHECK(id == 3 || id == classes - 2);
      // Half of them forbidden; fewer than k remain.
      logits.draw(random);
      for (int64_t i = 0; i < classes; i += 2) put(i, -kInfinity);
      for (int64_t i = 9; i < classes; ++i) put(i, NAN);
      for (int64_t id : draw(logits, classes, 3, options)) CHECK(id < 9 && id % 2 == 1);
    }
  }
}

TEST(sample_at_temperature_0_takes_the_first_of_the_largest) {
  for (int64_t classes : {50, 9000}) {
    Buffer<float> logits(classes, 2);
    std::mt19937 random(9);
    logits.draw(random);
    for (int64_t id : {int64_t{0}, int64_t{1}, classes / 2, classes - 1}) {
      logits.draw(random, 0.0f, 1.0f);
      for (int64_t i = id; i < classes; i += 7) logits.data()[i] = 9.0f;
      CHECK_EQUAL(draw(logits, classes, 1, {0.0f, 5.0f, 0.5f, 0.0f, 1.0f})[0], id);
    }
  }
}

// Values outside their ranges, which tensors of options may hold, end in some id.
TEST(sample_survives_settings_that_make_no_sense) {
  std::mt19937 random(10);
  Buffer<float> logits(300);
  logits.draw(random);
  for (float bad : {NAN, kInfinity, -kInfinity, -1.0f, 0.0f, 1e-45f, 3e38f, 7.0f}) {
    for (int which = 0; which < 5; ++which) {
      float numbers[] = {1.0f, 3.0f, 0.9f, 0.1f, 1.5f};
      numbers[which] = bad;
      const SampleOptions options{numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]};
      for (int64_t id : draw(logits, 300, 2, options, {1, 2, 3})) CHECK(id >= -1 && id < 300);
    }
  }
}

TEST(sample_draws_the_same_whatever_the_order_of_threads) {
  std::mt19937 random(11);
  Buffer<device::bfloat16> logits(3000);
  logits.draw(random, 0.0f, 0.5f);
  const SampleOptions options{1.0f, 900.0f, 0.9f, 0.001f, 1.2f};
  const std::vector<int64_t> first = draw(logits, 3000, 4, options, {5, 6});
  for (int repeat = 0; repeat < 3; ++repeat)  // each launch has another order
    CHECK(draw(logits, 3000, 4, options, {5, 6}) == first);
}

}  // namespace
