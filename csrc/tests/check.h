// A test runner in one header: the environment promises a C++ compiler and Python packages, none of
// which carries a C++ test framework. TEST(name) { … } registers a case; tests/test_simt.py runs
// each one and reports it to pytest.
#pragma once

#include <cstdint>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "simt/engine.h"

namespace llmjp::tests {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Registration {
  Registration(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

#define TEST(test_name)                                                                         \
  static void test_name();                                                                      \
  static const ::llmjp::tests::Registration registration_of_##test_name(#test_name, test_name); \
  static void test_name()

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  throw std::logic_error(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

#define CHECK(condition) \
  if (!(condition)) ::llmjp::tests::fail(__FILE__, __LINE__, "not true: " #condition)

#define CHECK_EQUAL(actual, expected)                                               \
  do {                                                                              \
    const auto actual_value = (actual);                                             \
    const auto expected_value = (expected);                                         \
    if (!(actual_value == expected_value)) {                                        \
      std::ostringstream text;                                                      \
      text << #actual << " is " << actual_value << ", expected " << expected_value; \
      ::llmjp::tests::fail(__FILE__, __LINE__, text.str());                         \
    }                                                                               \
  } while (false)

inline simt::Grid grid(int blocks, int threads, size_t shared_bytes = 0) {
  simt::Grid result;
  result.blocks.x = blocks;
  result.threads_per_block = threads;
  result.shared_bytes = shared_bytes;
  return result;
}

// The words of the fault that this launch ends with under the seed; empty if it ends without.
inline std::string fault_of(const simt::Grid& grid, const simt::Options& options,
                            const std::function<void()>& body) {
  try {
    simt::launch(grid, options, body);
  } catch (const simt::Fault& fault) {
    return fault.what();
  }
  return "";
}

// Fails unless the launch faults under every one of the seeds and each fault says `words`.
inline void check_faults(const char* file, int line, const simt::Grid& grid,
                         const std::string& words, const std::function<void()>& body) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    simt::Options options;
    options.seed = seed;
    const std::string fault = fault_of(grid, options, body);
    if (fault.find(words) == std::string::npos) {
      fail(file, line,
           "seed " + std::to_string(seed) + ": expected a fault with '" + words + "', got '" +
               fault + "'");
    }
  }
}

#define CHECK_FAULTS(grid, words, ...) \
  ::llmjp::tests::check_faults(__FILE__, __LINE__, grid, words, __VA_ARGS__)

}  // namespace llmjp::tests
