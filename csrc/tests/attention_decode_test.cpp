// The decode kernels on buffers of exactly the size they may touch, so that the sanitized build
// finds any access beyond; caches in blocks and whole, any number of parts, several query tokens,
// appends, and orders of threads, which must give the same bits. Values are checked against the
// formula in double.
#include "attention/attention_decode.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "attention/attention_decode.cuh"
#include "attention/decode_tiles.h"
#include "device/dtype.h"
#include "tests/buffer.h"
#include "tests/check.h"

namespace {

using namespace llmjp;
using device::bfloat16;
using tests::Buffer;

struct Problem {
  int head_dim = 64;
  int tokens = 1;
  int fresh = 1;
  int heads = 2;
  int kv_heads = 1;
  std::vector<int> lengths = {37};  // before the append
  int page = 128;
  int pages = 0;  // 0: one block for each sequence
  int splits = 1;
  int padding = 0;  // elements between rows
  int window_left = -1;
  std::vector<int> starts = {};
  bool slopes = false;
  float softcap = 0.0f;
  float scale = 0.2f;

  int batch() const { return static_cast<int>(lengths.size()); }
  int blocks() const { return pages == 0 ? batch() : batch() * pages + 1; }
};

// Rows of heads beside each other, one after another; the last ends with its data.
struct Rows {
  int64_t heads, head_dim, padding;
  int64_t row() const { return heads * head_dim + padding; }
  int64_t elements(int64_t rows) const { return rows == 0 ? 0 : rows * row() - padding; }
  int64_t place(int64_t row_index, int64_t head, int64_t d) const {
    return row_index * row() + head * head_dim + d;
  }
  attention::Strides strides(int64_t rows_of_batch) const {
    return {rows_of_batch * row(), row(), head_dim};
  }
};

struct Operands {
  Problem problem;
  Rows q_rows, kv_rows;
  Buffer<bfloat16> q, k_cache, v_cache, k_new, v_new;
  std::vector<int32_t> table;
  std::vector<float> alibi;

  explicit Operands(const Problem& p)
      : problem(p),
        q_rows{p.heads, p.head_dim, p.padding},
        kv_rows{p.kv_heads, p.head_dim, p.padding},
        q(q_rows.elements(p.batch() * p.tokens)),
        k_cache(kv_rows.elements(p.blocks() * p.page)),
        v_cache(kv_rows.elements(p.blocks() * p.page)),
        k_new(kv_rows.elements(p.batch() * p.fresh)),
        v_new(kv_rows.elements(p.batch() * p.fresh)),
        table(static_cast<size_t>(p.batch()) * p.pages),
        alibi(p.slopes ? p.heads : 0) {
    std::mt19937 random(17);
    q.draw(random, 0.0f, 1.0f);
    k_new.draw(random, 0.0f, 1.0f);
    v_new.draw(random, 0.0f, 1.0f);
    // Each block once, in any order, and one of them not at all.
    std::vector<int32_t> blocks(p.blocks());
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), random);
    std::copy_n(blocks.begin(), table.size(), table.begin());
    for (size_t i = 0; i < alibi.size(); ++i) alibi[i] = 0.3f / static_cast<float>(i + 1);
    // Only what is filled holds numbers: the rest of the caches stays NaN and must not be read.
    for (int b = 0; b < p.batch(); ++b) {
      random.seed(100 + b);  // whatever the other sequences' lengths
      std::normal_distribution<float> normal;
      const int first = p.starts.empty() ? 0 : p.starts[b];
      for (int key = first; key < std::min(p.lengths[b], capacity()); ++key) {
        for (int i = 0; i < p.kv_heads * p.head_dim; ++i) {
          const int64_t place = kv_rows.place(cache_row(b, key), 0, i);
          k_cache.data()[place] = device::from_float<bfloat16>(normal(random));
          v_cache.data()[place] = device::from_float<bfloat16>(normal(random));
        }
      }
    }
  }

  int capacity() const { return problem.page * std::max(1, problem.pages); }
  int64_t cache_row(int b, int key) const {
    if (problem.pages == 0) return int64_t{b} * problem.page + key;
    return int64_t{table[b * problem.pages + key / problem.page]} * problem.page +
           key % problem.page;
  }
};

struct Result {
  std::vector<bfloat16> out;
  std::vector<float> lse;
};

Result run(Operands& operands) {
  const Problem& problem = operands.problem;
  const int64_t rows = int64_t{problem.batch()} * problem.tokens * problem.heads;
  Result result{std::vector<bfloat16>(rows * problem.head_dim, {0x7fff}),
                std::vector<float>(rows, NAN)};
  attention::AttentionDecode params{};
  params.q = operands.q.data();
  params.k_cache = operands.k_cache.data();
  params.v_cache = operands.v_cache.data();
  params.k_new = problem.fresh == 0 ? nullptr : operands.k_new.data();
  params.v_new = problem.fresh == 0 ? nullptr : operands.v_new.data();
  params.cache_seqlens = problem.lengths.data();
  params.block_table = problem.pages == 0 ? nullptr : operands.table.data();
  params.starts_k = problem.starts.empty() ? nullptr : problem.starts.data();
  params.alibi = problem.slopes ? operands.alibi.data() : nullptr;
  params.out = result.out.data();
  params.lse = result.lse.data();
  params.q_strides = operands.q_rows.strides(problem.tokens);
  params.k_strides = params.v_strides = operands.kv_rows.strides(problem.page);
  params.k_new_strides = params.v_new_strides = operands.kv_rows.strides(problem.fresh);
  params.batch = problem.batch();
  params.tokens = problem.tokens;
  params.fresh = problem.fresh;
  params.heads = problem.heads;
  params.kv_heads = problem.kv_heads;
  params.head_dim = problem.head_dim;
  params.blocks = problem.blocks();
  params.page = problem.page;
  params.pages = std::max(1, problem.pages);
  params.window_left = problem.window_left;
  params.scale = problem.scale;
  params.softcap = problem.softcap;
  params.splits = problem.splits;
  params.type = host::DType::kBFloat16;
  Buffer<float> workspace(attention::attention_decode_workspace(params));
  params.workspace = workspace.data();
  attention::attention_decode(params, nullptr);
  return result;
}

void check_values(Operands& operands, const Result& result) {
  const Problem& p = operands.problem;
  for (int b = 0; b < p.batch(); ++b) {
    const int total = p.lengths[b] + p.fresh;
    for (int row = 0; row < p.tokens * p.heads; ++row) {
      const int token = row / p.heads, head = row % p.heads;
      const int kv_head = head / (p.heads / p.kv_heads);
      const int position = total - p.tokens + token;
      int low = p.starts.empty() ? 0 : p.starts[b];
      if (p.window_left >= 0) low = std::max(low, position - p.window_left);
      const auto value = [&](Buffer<bfloat16>& cache, Buffer<bfloat16>& fresh, int key, int d) {
        if (key < p.lengths[b]) {
          return cache[operands.kv_rows.place(operands.cache_row(b, key), kv_head, d)];
        }
        return fresh[operands.kv_rows.place(int64_t{b} * p.fresh + key - p.lengths[b], kv_head, d)];
      };
      std::vector<double> weights;
      double sum = 0.0;
      for (int key = low; key <= position; ++key) {
        double score = 0.0;
        for (int d = 0; d < p.head_dim; ++d) {
          score += operands.q[operands.q_rows.place(int64_t{b} * p.tokens + token, head, d)] *
                   value(operands.k_cache, operands.k_new, key, d);
        }
        score *= p.scale;
        if (p.softcap > 0.0f) score = p.softcap * std::tanh(score / p.softcap);
        if (p.slopes) score -= static_cast<double>(operands.alibi[head]) * (position - key);
        weights.push_back(std::exp(score));
        sum += weights.back();
      }
      const double lse = result.lse[(int64_t{b} * p.heads + head) * p.tokens + token];
      CHECK(sum == 0.0 ? lse == -INFINITY : std::abs(lse - std::log(sum)) < 1e-4);
      for (int d = 0; d < p.head_dim; ++d) {
        double expected = 0.0;
        for (size_t i = 0; i < weights.size(); ++i) {
          expected += weights[i] / sum *
                      value(operands.v_cache, operands.v_new, low + static_cast<int>(i), d);
        }
        const int64_t place = ((int64_t{b} * p.tokens + token) * p.heads + head) * p.head_dim + d;
        // Probabilities and the result are rounded to 8 bits; |v| stays below 5.
        CHECK(std::abs(device::to_float(result.out[place]) - expected) < 2 * 5.0 / 256);
      }
    }
  }
}

// The new keys stand behind the old ones, and nothing else has changed.
void check_append(Operands& after, Operands& before) {
  const Problem& p = after.problem;
  for (int b = 0; b < p.batch(); ++b) {
    if (p.lengths[b] + p.fresh > after.capacity()) continue;
    for (int i = 0; i < p.fresh; ++i) {
      for (int j = 0; j < p.kv_heads * p.head_dim; ++j) {
        const int64_t source = after.kv_rows.place(int64_t{b} * p.fresh + i, 0, j);
        const int64_t target = after.kv_rows.place(after.cache_row(b, p.lengths[b] + i), 0, j);
        before.k_cache.data()[target] = before.k_new.data()[source];
        before.v_cache.data()[target] = before.v_new.data()[source];
      }
    }
  }
  const int64_t elements = after.kv_rows.elements(p.blocks() * p.page);
  for (int64_t i = 0; i < elements; ++i) {
    CHECK_EQUAL(after.k_cache.data()[i].bits, before.k_cache.data()[i].bits);
    CHECK_EQUAL(after.v_cache.data()[i].bits, before.v_cache.data()[i].bits);
  }
}

bool same_bits(const Result& a, const Result& b) {
  bool same = a.lse == b.lse;
  for (size_t i = 0; i < a.out.size(); ++i) same &= a.out[i].bits == b.out[i].bits;
  return same;
}

void check_problem(const Problem& problem) {
  Operands operands(problem), untouched(problem);
  const Result first = run(operands);
  check_values(operands, first);
  check_append(operands, untouched);
  for (int again = 0; again < 2; ++again) {  // each launch has a seed of its own
    CHECK(same_bits(run(operands), first));
  }
}

TEST(decode_reads_and_writes_only_what_is_there) {
  check_problem({.head_dim = 64, .lengths = {37, 0, 100}});
  check_problem({.head_dim = 128, .heads = 4, .kv_heads = 4, .lengths = {70}, .page = 71});
  check_problem({.head_dim = 256, .lengths = {33}, .page = 40, .padding = 8});
}

TEST(decode_of_narrow_heads_reads_nothing_beside_them) {
  check_problem({.head_dim = 40, .lengths = {37, 90}, .padding = 8});
  check_problem({.head_dim = 136, .tokens = 2, .fresh = 2, .lengths = {50}});
  for (int head_dim = 8; head_dim <= 256; head_dim += 8) {
    check_problem({.head_dim = head_dim, .heads = 1, .lengths = {4}, .page = 5});
  }
}

TEST(decode_adds_up_any_number_of_parts) {
  for (const int splits : {2, 3, 7, 40}) {
    check_problem({.head_dim = 128, .lengths = {0, 64, 300}, .page = 320, .splits = splits});
  }
  check_problem({.head_dim = 64, .lengths = {255, 511}, .page = 512, .splits = 4});
  check_problem({.head_dim = 256, .lengths = {200}, .page = 256, .splits = 3});
}

TEST(decode_of_blocks_that_lie_anywhere) {
  check_problem({.head_dim = 128, .lengths = {15, 16, 90}, .page = 16, .pages = 6});
  check_problem({.head_dim = 128, .lengths = {100}, .page = 1, .pages = 101, .splits = 2});
  check_problem({.head_dim = 64, .lengths = {149, 7}, .page = 50, .pages = 3, .splits = 2});
}

TEST(decode_of_several_tokens_packs_the_heads_that_share_keys) {
  check_problem({.head_dim = 128,
                 .tokens = 4,
                 .fresh = 4,
                 .heads = 8,
                 .kv_heads = 2,
                 .lengths = {90, 3},
                 .splits = 2});
  check_problem({.head_dim = 64,
                 .tokens = 8,
                 .fresh = 8,
                 .heads = 8,
                 .kv_heads = 1,
                 .lengths = {70, 0},
                 .page = 16,
                 .pages = 8});
  check_problem(
      {.head_dim = 256, .tokens = 5, .fresh = 0, .heads = 8, .kv_heads = 2, .lengths = {60}});
}

TEST(decode_of_more_rows_than_a_block_takes) {
  check_problem({.head_dim = 64,
                 .tokens = 150,
                 .fresh = 150,
                 .heads = 2,
                 .lengths = {9},
                 .page = 160,
                 .splits = 2});
}

TEST(decode_of_fewer_queries_than_new_keys_and_of_more_than_keys) {
  check_problem({.head_dim = 64, .tokens = 2, .fresh = 9, .lengths = {40, 0}});
  check_problem({.head_dim = 64, .tokens = 6, .fresh = 0, .lengths = {2, 0, 50}, .splits = 2});
}

TEST(decode_masks_and_formulas) {
  check_problem(
      {.head_dim = 128, .lengths = {200, 5}, .page = 208, .splits = 2, .window_left = 70});
  check_problem({.head_dim = 64, .fresh = 0, .lengths = {100, 100}, .starts = {33, 101}});
  check_problem({.head_dim = 64,
                 .tokens = 3,
                 .fresh = 3,
                 .heads = 6,
                 .kv_heads = 2,
                 .lengths = {100, 20},
                 .window_left = 50,
                 .starts = {70, 0},
                 .slopes = true,
                 .softcap = 2.0f,
                 .scale = 0.4f});
  check_problem({.head_dim = 64, .lengths = {90}, .scale = -0.1f});
}

Problem random_problem(uint32_t seed) {
  std::mt19937 random(seed);
  const auto below = [&](int limit) { return static_cast<int>(random() % limit); };
  Problem p;
  p.head_dim = 8 * (1 + below(below(4) == 0 ? 32 : 16));
  p.kv_heads = 1 + below(3);
  p.heads = p.kv_heads * (1 + below(9));
  p.tokens = 1 + below(below(2) == 0 ? 9 : 2);
  p.fresh = below(3) == 0 ? below(12) : p.tokens;
  p.page = 1 + below(200);
  p.pages = below(2) == 0 ? 0 : 1 + below(300) / p.page;
  p.page = std::max(p.page, p.pages == 0 ? p.fresh : (p.fresh + p.pages - 1) / p.pages);
  p.splits = 1 + below(6);
  p.padding = 8 * below(3);
  p.window_left = below(3) == 0 ? below(150) : -1;
  p.slopes = below(3) == 0;
  p.softcap = below(3) == 0 ? 3.0f : 0.0f;
  p.lengths.resize(1 + below(3));
  const int room = p.page * std::max(1, p.pages) - p.fresh;
  for (int& length : p.lengths) length = below(4) == 0 ? room : below(room + 1);
  if (below(3) == 0) {
    for (const int length : p.lengths) p.starts.push_back(below(length + 2));
  }
  return p;
}

// LLMJP_DECODE_PROBLEMS sets how many.
TEST(decode_of_random_problems) {
  const char* const asked = std::getenv("LLMJP_DECODE_PROBLEMS");
  const uint32_t problems = asked == nullptr ? 12 : static_cast<uint32_t>(std::atoi(asked));
  for (uint32_t seed = 1; seed <= problems; ++seed) {
    try {
      check_problem(random_problem(seed));
    } catch (const std::exception& error) {
      tests::fail(__FILE__, __LINE__, "problem " + std::to_string(seed) + ": " + error.what());
    }
  }
}

TEST(decode_appends_where_nothing_asks) {
  for (const Problem& problem : {Problem{.tokens = 0, .fresh = 5, .lengths = {3, 60}},
                                 Problem{.fresh = 5, .heads = 0, .lengths = {3, 60}}}) {
    Operands operands(problem), untouched(problem);
    run(operands);
    check_append(operands, untouched);
  }
}

// The rows of the first sequence are NaN, those of the second as without the first.
void check_poisoned_first(Operands& operands, const Result& expected) {
  const Problem& p = operands.problem;
  const Result result = run(operands);
  const size_t row = static_cast<size_t>(p.heads) * p.tokens;
  for (size_t i = 0; i < 2 * row; ++i) {
    CHECK(i < row ? std::isnan(result.lse[i]) : result.lse[i] == expected.lse[i]);
  }
  for (size_t i = 0; i < 2 * row * p.head_dim; ++i) {
    CHECK(i < row * p.head_dim ? std::isnan(device::to_float(result.out[i]))
                               : result.out[i].bits == expected.out[i].bits);
  }
}

TEST(decode_of_what_does_not_fit_is_nan_and_appends_nothing) {
  for (const int splits : {1, 2}) {
    Problem problem{.lengths = {60, 40}, .page = 64, .splits = splits};
    Operands fitting(problem);
    const Result expected = run(fitting);
    for (const int length : {64, 2147483647, -1}) {
      problem.lengths = {length, 40};
      Operands operands(problem), untouched(problem);
      check_poisoned_first(operands, expected);
      untouched.problem.lengths[0] = operands.problem.lengths[0] = 1000;  // not appended
      check_append(operands, untouched);
    }
  }
}

TEST(decode_of_a_block_that_is_not_there_is_nan) {
  for (const int block : {-1, 9, 2147483647}) {
    Problem problem{.lengths = {60, 40}, .page = 16, .pages = 4, .splits = 2};
    Operands operands(problem);
    const Result expected = run(operands);
    operands.table[2] = block;
    check_poisoned_first(operands, expected);
  }
}

TEST(decode_parts_cover_every_tile_once_and_keep_a_gpu_busy) {
  for (int tiles = 0; tiles < 40; ++tiles) {
    for (int splits = 1; splits < 12; ++splits) {
      int next = 0;
      for (int split = 0; split < splits; ++split) {
        const attention::TileRange range = attention::tiles_of_split(tiles, splits, split);
        CHECK_EQUAL(range.first, std::min(next, tiles));
        CHECK(range.end >= range.first);
        next = range.end;
      }
      CHECK_EQUAL(next, tiles);
    }
  }
  constexpr int kSlots = 216;  // two blocks for each multiprocessor of an A100
  // One sequence of 2,048 keys, 16 heads: all slots but a few have work.
  CHECK_EQUAL(attention::choose_splits(16, 2048, 32, kSlots, true), 12);
  // Blocks enough without parts, as long as one is not a large share of the whole.
  CHECK_EQUAL(attention::choose_splits(128 * 8, 2048, 32, kSlots, true), 1);
  CHECK_EQUAL(attention::choose_splits(128 * 8, 16384, 32, kSlots, true), 4);
  CHECK_EQUAL(attention::choose_splits(1, 64, 32, kSlots, true), 1);
  CHECK_EQUAL(attention::choose_splits(1, int64_t{1} << 30, 32, kSlots, true), 128);
  CHECK_EQUAL(attention::choose_splits(4096, 16384, 32, kSlots, false), 1);
}

}  // namespace
