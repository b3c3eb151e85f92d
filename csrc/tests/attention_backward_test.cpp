// The kernels of attention's backward pass on buffers of exactly the size they may touch, the
// scratch memory full of NaN, under several orders of their threads and blocks. Values are checked
// against the formula in double; with a fixed order of the sums all bits must repeat.
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "attention/attention.h"
#include "attention/attention_backward.cuh"
#include "attention/backward_tiles.h"
#include "tests/attention_matrix.h"
#include "tests/check.h"

namespace {

using namespace llmjp;
using device::bfloat16;
using tests::Matrix;

constexpr float kScale = 0.2f;

struct Problem {
  int tokens, keys, heads, kv_heads, head_dim;
  int left, right;
  int padding;  // elements between the rows of q, k, v and dout
  float softcap;

  bool sees(int token, int key) const {
    const int distance = token + keys - tokens - key;
    return (left < 0 || distance <= left) && (right < 0 || -distance <= right);
  }
};

struct Inputs {
  Matrix q, k, v, dout, out;
  std::vector<float> lse;
};

struct Gradients {
  std::vector<double> dq, dk, dv;
};

double dot(const Matrix& a, int i, int head_a, const Matrix& b, int j, int head_b) {
  double sum = 0.0;
  for (int d = 0; d < a.head_dim; ++d) sum += a.at(i, head_a, d) * b.at(j, head_b, d);
  return sum;
}

Gradients expected(const Problem& problem, Inputs& inputs) {
  const int width = problem.head_dim;
  Gradients result{std::vector<double>(problem.tokens * problem.heads * width),
                   std::vector<double>(problem.keys * problem.kv_heads * width),
                   std::vector<double>(problem.keys * problem.kv_heads * width)};
  const auto place = [&](int row, int heads, int head) { return (row * heads + head) * width; };
  for (int token = 0; token < problem.tokens; ++token) {
    for (int head = 0; head < problem.heads; ++head) {
      const int kv_head = head / (problem.heads / problem.kv_heads);
      std::vector<double> p(problem.keys, 0.0), slope(problem.keys, 1.0);
      double sum = 0.0;
      for (int key = 0; key < problem.keys; ++key) {
        if (!problem.sees(token, key)) continue;
        double score = kScale * dot(inputs.q, token, head, inputs.k, key, kv_head);
        if (problem.softcap > 0.0f) {
          const double tangent = std::tanh(score / problem.softcap);
          score = problem.softcap * tangent;
          slope[key] = 1.0 - tangent * tangent;
        }
        sum += p[key] = std::exp(score);
      }
      inputs.lse[head * problem.tokens + token] =
          sum == 0.0 ? -INFINITY : static_cast<float>(std::log(sum));
      double delta = 0.0;
      for (int d = 0; d < width; ++d) {
        double out = 0.0;
        for (int key = 0; key < problem.keys && sum > 0.0; ++key) {
          out += p[key] / sum * inputs.v.at(key, kv_head, d);
        }
        inputs.out.elements[static_cast<size_t>(token) * inputs.out.row + head * width + d] =
            device::from_float<bfloat16>(static_cast<float>(out));
        delta += out * inputs.dout.at(token, head, d);
      }
      for (int key = 0; key < problem.keys; ++key) {
        if (p[key] == 0.0) continue;
        const double probability = p[key] / sum;
        const double ds = probability * slope[key] *
                          (dot(inputs.dout, token, head, inputs.v, key, kv_head) - delta);
        for (int d = 0; d < width; ++d) {
          const int row = place(key, problem.kv_heads, kv_head) + d;
          result.dv[row] += probability * inputs.dout.at(token, head, d);
          result.dk[row] += kScale * ds * inputs.q.at(token, head, d);
          result.dq[place(token, problem.heads, head) + d] +=
              kScale * ds * inputs.k.at(key, kv_head, d);
        }
      }
    }
  }
  return result;
}

struct Result {
  std::vector<bfloat16> dq, dk, dv;
  std::vector<float> workspace;  // with the sums of dq, whose last bits rounding hides
};

Result run(const Problem& problem, const Inputs& inputs, bool deterministic) {
  const auto poisoned = [&](int rows) {
    return std::vector<bfloat16>(static_cast<size_t>(rows) * problem.head_dim, {0x7fff});
  };
  Result result{poisoned(problem.tokens * problem.heads),
                poisoned(problem.keys * problem.kv_heads),
                poisoned(problem.keys * problem.kv_heads),
                {}};
  attention::AttentionBackward params{};
  params.q = inputs.q.elements.data();
  params.k = inputs.k.elements.data();
  params.v = inputs.v.elements.data();
  params.dout = inputs.dout.elements.data();
  params.out = inputs.out.elements.data();
  params.lse = inputs.lse.data();
  params.dq = result.dq.data();
  params.dk = result.dk.data();
  params.dv = result.dv.data();
  params.q_strides = inputs.q.strides();
  params.k_strides = inputs.k.strides();
  params.v_strides = inputs.v.strides();
  params.dout_strides = inputs.dout.strides();
  params.out_strides = inputs.out.strides();
  params.batch = 1;
  params.tokens = problem.tokens;
  params.keys = problem.keys;
  params.heads = problem.heads;
  params.kv_heads = problem.kv_heads;
  params.head_dim = problem.head_dim;
  params.window_left = problem.left;
  params.window_right = problem.right;
  params.scale = kScale;
  params.softcap = problem.softcap;
  params.type = host::DType::kBFloat16;
  params.deterministic = deterministic;
  result.workspace.assign(attention::attention_backward_workspace(params), NAN);
  params.workspace = result.workspace.data();
  attention::attention_backward(params, nullptr);
  return result;
}

bool same(const std::vector<bfloat16>& a, const std::vector<bfloat16>& b) {
  bool equal = a.size() == b.size();
  for (size_t i = 0; equal && i < a.size(); ++i) equal = a[i].bits == b[i].bits;
  return equal;
}

// Operands are rounded to 8 bits and summed up: the error of a sum is that of its largest terms.
void check_close(const std::vector<bfloat16>& actual, const std::vector<double>& exact) {
  double largest = 0.0;
  for (const double value : exact) largest = std::max(largest, std::abs(value));
  CHECK_EQUAL(actual.size(), exact.size());
  for (size_t i = 0; i < exact.size(); ++i) {
    CHECK(std::abs(device::to_float(actual[i]) - exact[i]) <= 4 * largest / 256);
  }
}

void check_problem(const Problem& problem, int repeats = 2) {
  std::mt19937 random(11);
  const int row = problem.heads * problem.head_dim + problem.padding;
  const int kv_row = problem.kv_heads * problem.head_dim + problem.padding;
  const auto matrix = [&](int rows, int heads, int row_in) {
    return Matrix(rows, heads, problem.head_dim, row_in);
  };
  Inputs inputs{matrix(problem.tokens, problem.heads, row),
                matrix(problem.keys, problem.kv_heads, kv_row),
                matrix(problem.keys, problem.kv_heads, kv_row),
                matrix(problem.tokens, problem.heads, row),
                matrix(problem.tokens, problem.heads, problem.heads * problem.head_dim),
                std::vector<float>(static_cast<size_t>(problem.tokens) * problem.heads)};
  for (Matrix* each : {&inputs.q, &inputs.k, &inputs.v, &inputs.dout}) each->draw(random);
  const Gradients exact = expected(problem, inputs);
  const Result ordered = run(problem, inputs, true);
  check_close(ordered.dq, exact.dq);
  check_close(ordered.dk, exact.dk);
  check_close(ordered.dv, exact.dv);
  for (int again = 0; again < repeats; ++again) {  // each launch has a seed of its own
    const Result repeated = run(problem, inputs, true);
    CHECK(same(repeated.dq, ordered.dq));
    CHECK(same(repeated.dk, ordered.dk));
    CHECK(same(repeated.dv, ordered.dv));
    CHECK(std::memcmp(repeated.workspace.data(), ordered.workspace.data(),
                      ordered.workspace.size() * sizeof(float)) == 0);
  }
  const Result fast = run(problem, inputs, false);
  check_close(fast.dq, exact.dq);
  CHECK(same(fast.dk, ordered.dk));
  CHECK(same(fast.dv, ordered.dv));
}

TEST(attention_backward_reads_and_writes_only_what_is_there) {
  check_problem({37, 71, 2, 1, 64, -1, -1, 0, 0.0f});
  check_problem({1, 33, 4, 1, 128, -1, 0, 24, 0.0f});
  check_problem({9, 21, 1, 1, 256, -1, 0, 0, 0.0f});
}

TEST(attention_backward_of_narrow_heads_touches_nothing_beside_them) {
  check_problem({19, 40, 2, 2, 40, -1, 0, 0, 1.5f});
  check_problem({19, 40, 1, 1, 136, 7, 2, 8, 2.0f});
  for (int head_dim = 8; head_dim <= 256; head_dim += 8) {
    check_problem({19, 40, 1, 1, head_dim, -1, 0, 0, 1.5f}, 0);
  }
}

TEST(attention_backward_of_several_tiles_keeps_its_bits_in_any_order) {
  check_problem({140, 150, 2, 1, 64, -1, 0, 64, 0.0f});
  check_problem({70, 140, 1, 1, 128, 60, 0, 0, 0.0f}, 1);
  check_problem({20, 100, 2, 1, 256, -1, -1, 0, 0.0f}, 1);
}

TEST(attention_backward_blocks_add_dq_in_turn_under_every_mask) {
  // Windows that let a tile of queries begin and end among the blocks of keys; queries and whole
  // blocks of keys that see nothing of each other.
  check_problem({130, 300, 1, 1, 64, 100, 30, 0, 0.0f});
  check_problem({300, 130, 1, 1, 64, 20, 150, 0, 0.0f}, 1);
  check_problem({40, 300, 2, 1, 64, 10, 0, 0, 0.0f}, 1);
  check_problem({200, 20, 2, 2, 64, -1, 0, 0, 0.0f});
  // Five blocks of keys add to each sum: two in any order give the same bits.
  check_problem({20, 600, 1, 1, 64, -1, -1, 0, 0.0f}, 3);
}

// Extra passes over shared memory that ldmatrix needs in one launch.
template <int kHeadDim, bool kGeneral>
uint64_t conflicts() {
  using Tile = typename attention::BackwardTileOf<kHeadDim, kGeneral>::type;
  const int tokens = 70, keys = 130;
  std::mt19937 random(3);
  Matrix q(tokens, 1, kHeadDim, kHeadDim), k(keys, 1, kHeadDim, kHeadDim);
  q.draw(random), k.draw(random);
  std::vector<bfloat16> dk(k.elements.size()), dv(k.elements.size());
  attention::AttentionBackward params{};
  params.q = params.dout = q.elements.data();
  params.k = params.v = k.elements.data();
  params.dk = dk.data();
  params.dv = dv.data();
  params.q_strides = params.k_strides = params.v_strides = params.dout_strides = q.strides();
  params.batch = params.heads = params.kv_heads = 1;
  params.tokens = tokens;
  params.keys = keys;
  params.head_dim = kHeadDim;
  params.window_left = params.window_right = -1;
  params.scale = params.exponent_scale = 0.1f;
  std::vector<float> workspace(attention::attention_backward_workspace(params), 0.0f);
  params.workspace = workspace.data();
  const int64_t pass = attention::rows_of_pass(Tile::kThreads, kHeadDim) * kHeadDim;
  const auto order = attention::backward_schedule(tokens, keys, 1, 1, 1, kHeadDim, Tile::kKeys);
  const auto grid =
      tests::grid(static_cast<int>(order.blocks()), Tile::kThreads, Tile::kSharedBytes);
  const simt::Statistics seen = simt::launch(grid, [&] {
    attention::attention_backward_kernel<bfloat16, Tile, kGeneral>(params, order,
                                                                   {pass, pass, pass, pass, 1});
  });
  CHECK(seen.warp_instructions > 0);
  return seen.matrix_row_conflicts;
}

TEST(attention_backward_reads_its_tiles_without_bank_conflicts) {
  CHECK_EQUAL((conflicts<64, false>()), uint64_t{0});
  CHECK_EQUAL((conflicts<128, false>()), uint64_t{0});
  CHECK_EQUAL((conflicts<128, true>()), uint64_t{0});
  CHECK_EQUAL((conflicts<256, false>()), uint64_t{0});
}

TEST(attention_backward_blocks_cover_every_key_once_and_the_first_keys_come_first) {
  for (const auto& [tokens, keys, batch, heads, group] :
       {std::tuple{1000, 1000, 2, 6, 2}, std::tuple{100000, 300, 3, 8, 1},
        std::tuple{5, 7, 1, 1, 1}}) {
    const attention::Schedule order =
        attention::backward_schedule(tokens, keys, batch, heads, heads / group, 128, 128);
    const int kv_heads = batch * heads / group;
    CHECK_EQUAL(order.blocks(), int64_t{(keys + 127) / 128} * kv_heads);
    int section = 0, last_block = 0;
    for (int index = 0; index < static_cast<int>(order.blocks()); ++index) {
      const attention::BlockPlace place = attention::block_place(order, index);
      const int key_block = order.row_blocks - 1 - place.row_block;
      if (place.head / order.heads_per_section != section) {
        CHECK_EQUAL(place.head / order.heads_per_section, ++section);
        last_block = 0;
      }
      CHECK(key_block >= last_block);
      last_block = key_block;
    }
  }
  // 100,000 queries of 128 numbers, with dout and their sums, exceed the cache.
  CHECK_EQUAL(attention::backward_schedule(100000, 300, 3, 8, 8, 128, 128).heads_per_section, 1);
}

}  // namespace
