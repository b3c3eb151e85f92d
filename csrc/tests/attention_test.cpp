// The attention kernel on buffers of exactly the size it may touch, so that the sanitized build
// finds any access beyond; under several orders of its threads, which must give the same bits; and
// the order of its blocks. Values are checked against the formula in double.
#include "attention/attention.h"

#include <cmath>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "attention/attention_forward.cuh"
#include "attention/tiles.h"
#include "device/dtype.h"
#include "tests/attention_matrix.h"
#include "tests/check.h"

namespace {

using namespace llmjp;
using device::bfloat16;
using tests::Matrix;

struct Problem {
  int tokens, keys, heads, kv_heads, head_dim;
  int left, right;
  int padding;  // elements between the rows of q, k and v
};

struct Result {
  std::vector<bfloat16> out;
  std::vector<float> lse;
};

Result run(const Problem& problem, const Matrix& q, const Matrix& k, const Matrix& v) {
  const int rows = problem.tokens * problem.heads;
  Result result{std::vector<bfloat16>(static_cast<size_t>(rows) * problem.head_dim, {0x7fff}),
                std::vector<float>(rows, NAN)};
  attention::AttentionForward params{};
  params.q = q.elements.data();
  params.k = k.elements.data();
  params.v = v.elements.data();
  params.out = result.out.data();
  params.lse = result.lse.data();
  params.q_strides = q.strides();
  params.k_strides = k.strides();
  params.v_strides = v.strides();
  params.batch = 1;
  params.tokens = problem.tokens;
  params.keys = problem.keys;
  params.heads = problem.heads;
  params.kv_heads = problem.kv_heads;
  params.head_dim = problem.head_dim;
  params.window_left = problem.left;
  params.window_right = problem.right;
  params.scale = 0.2f;
  params.type = host::DType::kBFloat16;
  attention::attention_forward(params, nullptr);
  return result;
}

void check_values(const Problem& problem, const Matrix& q, const Matrix& k, const Matrix& v,
                  const Result& result) {
  const int shift = problem.keys - problem.tokens;
  for (int token = 0; token < problem.tokens; ++token) {
    for (int head = 0; head < problem.heads; ++head) {
      const int kv_head = head / (problem.heads / problem.kv_heads);
      std::vector<double> p(problem.keys, 0.0);
      double sum = 0.0;
      for (int key = 0; key < problem.keys; ++key) {
        if (problem.left >= 0 && key < token + shift - problem.left) continue;
        if (problem.right >= 0 && key > token + shift + problem.right) continue;
        double score = 0.0;
        for (int d = 0; d < problem.head_dim; ++d)
          score += q.at(token, head, d) * k.at(key, kv_head, d);
        sum += p[key] = std::exp(score * static_cast<double>(0.2f));
      }
      const double lse = result.lse[head * problem.tokens + token];
      CHECK(sum == 0.0 ? lse == -INFINITY : std::abs(lse - std::log(sum)) < 1e-4);
      for (int d = 0; d < problem.head_dim; ++d) {
        double expected = 0.0;
        for (int key = 0; key < problem.keys; ++key) {
          if (p[key] > 0.0) expected += p[key] / sum * v.at(key, kv_head, d);
        }
        const size_t place =
            (static_cast<size_t>(token) * problem.heads + head) * problem.head_dim + d;
        // Probabilities and the result are rounded to 8 bits; |v| stays below 5.
        CHECK(std::abs(device::to_float(result.out[place]) - expected) < 2 * 5.0 / 256);
      }
    }
  }
}

void check_problem(const Problem& problem, int repeats = 3) {
  std::mt19937 random(11);
  const int row = problem.heads * problem.head_dim + problem.padding;
  const int kv_row = problem.kv_heads * problem.head_dim + problem.padding;
  Matrix q(problem.tokens, problem.heads, problem.head_dim, row);
  Matrix k(problem.keys, problem.kv_heads, problem.head_dim, kv_row);
  Matrix v(problem.keys, problem.kv_heads, problem.head_dim, kv_row);
  q.draw(random), k.draw(random), v.draw(random);
  const Result first = run(problem, q, k, v);
  check_values(problem, q, k, v, first);
  for (int again = 0; again < repeats; ++again) {  // each launch has a seed of its own
    const Result other = run(problem, q, k, v);
    bool same = other.lse == first.lse;
    for (size_t i = 0; i < first.out.size(); ++i) same &= other.out[i].bits == first.out[i].bits;
    CHECK(same);
  }
}

TEST(attention_reads_and_writes_only_what_is_there) {
  check_problem({37, 71, 2, 1, 64, -1, -1, 0});
  check_problem({1, 33, 4, 1, 128, -1, 0, 24});
}

TEST(attention_of_narrow_heads_reads_nothing_beside_them) {
  check_problem({19, 40, 2, 2, 40, -1, 0, 0});
  check_problem({19, 40, 1, 1, 136, 7, 2, 8});
  for (int head_dim = 8; head_dim <= 256; head_dim += 8) {
    check_problem({3, 5, 1, 1, head_dim, -1, 0, 0}, 1);
  }
}

TEST(attention_of_several_tiles_keeps_its_bits_in_any_order) {
  check_problem({150, 170, 2, 1, 64, -1, 0, 64});
  check_problem({140, 90, 1, 1, 128, 60, 0, 0});  // the first queries see no key
}

// Extra passes over shared memory that ldmatrix needs in one launch.
template <int kHeadDim, bool kGeneral>
uint64_t conflicts() {
  using Tile = typename attention::TileOf<kHeadDim, kGeneral>::type;
  const int tokens = 130, keys = 140;
  std::mt19937 random(3);
  Matrix q(tokens, 1, kHeadDim, kHeadDim), k(keys, 1, kHeadDim, kHeadDim);
  q.draw(random), k.draw(random);
  std::vector<bfloat16> out(q.elements.size());
  std::vector<float> lse(tokens);
  attention::AttentionForward params{};
  params.q = q.elements.data();
  params.k = params.v = k.elements.data();
  params.out = out.data();
  params.lse = lse.data();
  params.q_strides = params.k_strides = params.v_strides = q.strides();
  params.batch = params.heads = params.kv_heads = 1;
  params.tokens = tokens;
  params.keys = keys;
  params.head_dim = kHeadDim;
  params.window_left = params.window_right = -1;
  params.scale = params.exponent_scale = 0.1f;
  const int64_t pass = attention::rows_of_pass(Tile::kThreads, kHeadDim) * kHeadDim;
  const int64_t tile = int64_t{Tile::kKeys} * kHeadDim;
  const auto order = attention::schedule(tokens, keys, 1, 1, 1, kHeadDim, Tile::kRows);
  const auto grid =
      tests::grid(static_cast<int>(order.blocks()), Tile::kThreads, Tile::kSharedBytes);
  const simt::Statistics seen = simt::launch(grid, [&] {
    attention::attention_forward_kernel<bfloat16, Tile, kGeneral>(params, order,
                                                                  {pass, pass, pass, tile, tile});
  });
  CHECK(seen.warp_instructions > 0);
  return seen.matrix_row_conflicts;
}

TEST(attention_reads_its_tiles_without_bank_conflicts) {
  CHECK_EQUAL((conflicts<64, false>()), uint64_t{0});
  CHECK_EQUAL((conflicts<64, true>()), uint64_t{0});
  CHECK_EQUAL((conflicts<128, false>()), uint64_t{0});
  CHECK_EQUAL((conflicts<128, true>()), uint64_t{0});
  CHECK_EQUAL((conflicts<256, false>()), uint64_t{0});
}

TEST(attention_blocks_cover_every_head_and_row_once_and_the_longest_come_first) {
  for (const auto& [tokens, keys, batch, heads] :
       {std::tuple{1000, 1000, 2, 6}, std::tuple{300, 100000, 3, 8}, std::tuple{5, 7, 1, 1}}) {
    const attention::Schedule order =
        attention::schedule(tokens, keys, batch, heads, heads / (heads > 1 ? 2 : 1), 128, 128);
    std::vector<int> seen(static_cast<size_t>(order.blocks()), 0);
    int section_head = 0, last_row_block = order.row_blocks;
    for (int index = 0; index < static_cast<int>(order.blocks()); ++index) {
      const attention::BlockPlace place = attention::block_place(order, index);
      CHECK(place.head >= 0 && place.head < batch * heads);
      CHECK(place.row_block >= 0 && place.row_block < order.row_blocks);
      ++seen[static_cast<size_t>(place.head) * order.row_blocks + place.row_block];
      const int section = place.head / order.heads_per_section;
      if (section != section_head) {
        CHECK_EQUAL(section, section_head + 1);
        section_head = section;
        last_row_block = order.row_blocks;
      }
      CHECK(place.row_block <= last_row_block);
      last_row_block = place.row_block;
    }
    for (const int count : seen) CHECK_EQUAL(count, 1);
  }
  // 100,000 keys of 128 numbers exceed the cache: the two query heads of a key head stay together.
  CHECK_EQUAL(attention::schedule(300, 100000, 3, 8, 4, 128, 128).heads_per_section, 2);
}

}  // namespace
