// The attention kernels on packed sequences, in buffers of exactly the size they may touch and
// scratch memory full of rubbish: each sequence has the bits that it has alone, under several
// orders of threads and blocks; what belongs to no sequence is 0; lengths that make no sense lead
// nowhere else. Values are those of attention_test and attention_backward_test.
#include <cmath>
#include <random>
#include <vector>

#include "attention/attention.h"
#include "attention/packed_order_launch.cuh"
#include "device/dtype.h"
#include "tests/attention_matrix.h"
#include "tests/check.h"

namespace {

using namespace llmjp;
using device::bfloat16;
using tests::Matrix;

struct Packing {
  std::vector<int32_t> q, k;  // cu_seqlens
  int tokens, keys;           // rows in all

  int batch() const { return static_cast<int>(q.size()) - 1; }
};

struct Heads {
  int heads, kv_heads, head_dim;
  int left, right;
  float softcap;
};

struct Inputs {
  Matrix q, k, v, dout;
};

struct Result {
  std::vector<bfloat16> out, dq, dk, dv;
  std::vector<float> lse;
};

Inputs draw(const Packing& packing, const Heads& heads) {
  std::mt19937 random(5);
  const auto matrix = [&](int rows, int count) {
    Matrix result(rows, count, heads.head_dim, count * heads.head_dim + 8);
    result.draw(random);
    return result;
  };
  const int tokens = packing.tokens, keys = packing.keys;
  return {matrix(tokens, heads.heads), matrix(keys, heads.kv_heads), matrix(keys, heads.kv_heads),
          matrix(tokens, heads.heads)};
}

// Both directions, packed or, without boundaries, of one sequence: rows [first_token, + tokens) and
// [first_key, + keys).
Result run(const Inputs& inputs, const Heads& heads, int first_token, int tokens, int first_key,
           int keys, const Packing* packing) {
  const auto poisoned = [&](int rows, int count) {
    return std::vector<bfloat16>(static_cast<size_t>(rows) * count * heads.head_dim, {0x7fff});
  };
  Result result{poisoned(tokens, heads.heads), poisoned(tokens, heads.heads),
                poisoned(keys, heads.kv_heads), poisoned(keys, heads.kv_heads),
                std::vector<float>(static_cast<size_t>(tokens) * heads.heads, NAN)};
  attention::AttentionForward forward{};
  forward.q = inputs.q.elements.data() + static_cast<int64_t>(first_token) * inputs.q.row;
  forward.k = inputs.k.elements.data() + static_cast<int64_t>(first_key) * inputs.k.row;
  forward.v = inputs.v.elements.data() + static_cast<int64_t>(first_key) * inputs.v.row;
  forward.q_strides = inputs.q.strides();
  forward.k_strides = forward.v_strides = inputs.k.strides();
  forward.batch = 1;
  forward.tokens = tokens;
  forward.keys = keys;
  forward.heads = heads.heads;
  forward.kv_heads = heads.kv_heads;
  forward.head_dim = heads.head_dim;
  forward.window_left = heads.left;
  forward.window_right = heads.right;
  forward.scale = 0.2f;
  forward.softcap = heads.softcap;
  forward.type = host::DType::kBFloat16;
  if (packing != nullptr) {
    forward.batch = packing->batch();
    forward.cu_seqlens_q = packing->q.data();
    forward.cu_seqlens_k = packing->k.data();
    forward.longest_q = forward.longest_k = 150;
  }
  forward.out = result.out.data();
  forward.lse = result.lse.data();
  std::vector<int32_t> order(attention::attention_forward_workspace(forward), -7);
  forward.workspace = order.data();
  attention::attention_forward(forward, nullptr);

  attention::AttentionBackward backward{};
  static_cast<attention::AttentionProblem&>(backward) = forward;
  backward.dout = inputs.dout.elements.data() + static_cast<int64_t>(first_token) * inputs.dout.row;
  backward.out = result.out.data();
  backward.lse = result.lse.data();
  backward.dq = result.dq.data();
  backward.dk = result.dk.data();
  backward.dv = result.dv.data();
  backward.dout_strides = inputs.dout.strides();
  backward.out_strides = {0, int64_t{heads.heads} * heads.head_dim, heads.head_dim};
  backward.deterministic = true;
  std::vector<float> workspace(attention::attention_backward_workspace(backward), NAN);
  backward.workspace = workspace.data();
  if (tokens > 0 && keys > 0) attention::attention_backward(backward, nullptr);
  return result;
}

Result run(const Inputs& inputs, const Heads& heads, const Packing& packing) {
  return run(inputs, heads, 0, packing.tokens, 0, packing.keys, &packing);
}

// Rows from `first` on of `all`, which must be those of `part`, or 0 where there is none.
void check_rows(const std::vector<bfloat16>& all, int first, int rows, int width,
                const std::vector<bfloat16>* part) {
  for (int64_t i = 0; i < int64_t{rows} * width; ++i) {
    const uint16_t expected = part == nullptr ? 0 : (*part)[i].bits;
    CHECK_EQUAL(all[int64_t{first} * width + i].bits, expected);
  }
}

void check_packing(const Packing& packing, const Heads& heads) {
  const Inputs inputs = draw(packing, heads);
  const int width = heads.heads * heads.head_dim, kv_width = heads.kv_heads * heads.head_dim;
  const auto check_queries = [&](const Result& all, int first, int end, const Result* alone) {
    check_rows(all.out, first, end - first, width, alone ? &alone->out : nullptr);
    check_rows(all.dq, first, end - first, width, alone ? &alone->dq : nullptr);
    for (int head = 0; head < heads.heads; ++head) {
      for (int row = first; row < end; ++row) {
        CHECK_EQUAL(all.lse[head * packing.tokens + row],
                    alone ? alone->lse[head * (end - first) + row - first] : -INFINITY);
      }
    }
  };
  const auto check_keys = [&](const Result& all, int first, int end, const Result* alone) {
    check_rows(all.dk, first, end - first, kv_width, alone ? &alone->dk : nullptr);
    check_rows(all.dv, first, end - first, kv_width, alone ? &alone->dv : nullptr);
  };
  for (int again = 0; again < 2; ++again) {  // each launch has a seed of its own
    const Result all = run(inputs, heads, packing);
    check_queries(all, 0, packing.q.front(), nullptr);
    check_queries(all, packing.q.back(), packing.tokens, nullptr);
    check_keys(all, 0, packing.k.front(), nullptr);
    check_keys(all, packing.k.back(), packing.keys, nullptr);
    for (int i = 0; i < packing.batch(); ++i) {
      const int token = packing.q[i], tokens = packing.q[i + 1] - token;
      const int key = packing.k[i], keys = packing.k[i + 1] - key;
      const bool both = tokens > 0 && keys > 0;
      const Result alone = both ? run(inputs, heads, token, tokens, key, keys, nullptr) : Result{};
      check_queries(all, token, token + tokens, both ? &alone : nullptr);
      check_keys(all, key, key + keys, both ? &alone : nullptr);
    }
  }
}

TEST(attention_of_packed_sequences_has_the_bits_of_each_alone) {
  check_packing({{0, 70, 73, 203}, {0, 70, 73, 203}, 203, 203}, {2, 1, 64, -1, 0, 0.0f});
  check_packing({{0, 33, 50}, {0, 65, 90}, 50, 90}, {1, 1, 128, 20, 3, 2.0f});
}

TEST(attention_of_packed_sequences_writes_what_belongs_to_none) {
  check_packing({{9, 9, 40, 44, 44}, {130, 139, 139, 150, 150}, 110, 151}, {2, 1, 40, -1, 0, 0.0f});
  check_packing({{3}, {2}, 7, 5}, {1, 1, 256, -1, -1, 0.0f});
}

TEST(attention_of_senseless_lengths_touches_only_what_is_there) {
  const Heads heads{1, 1, 64, -1, 0, 0.0f};
  for (const auto& lengths : {std::vector<int32_t>{-50, 20, 1000},
                              {70, 10, 30},
                              {0, 100, 20, 90, 5},
                              {2147483647, -2147483647 - 1, 3}}) {
    const Packing packing{lengths, lengths, 90, 90};
    const Inputs inputs = draw(packing, heads);
    CHECK_EQUAL(run(inputs, heads, packing).lse.size(), size_t{90});
    std::vector<int32_t> other(lengths.size(), 0);
    other.back() = 90;
    const Packing mixed{lengths, other, 90, 90};
    CHECK_EQUAL(run(inputs, heads, mixed).lse.size(), size_t{90});
  }
  std::mt19937 random(7);
  Packing packing{{}, {}, 300, 200};
  for (int i = 0; i <= 40; ++i) {  // more than a warp searches at once
    packing.q.push_back(static_cast<int>(random() % 400) - 50);
    packing.k.push_back(static_cast<int>(random() % 300) - 50);
  }
  CHECK_EQUAL(run(draw(packing, heads), heads, packing).lse.size(), size_t{300});
}

// Sequences that overlap share the counters by which the blocks of keys take turns.
TEST(attention_of_overlapping_sequences_does_not_wait_for_ever) {
  const Heads heads{1, 1, 64, -1, 0, 0.0f};
  for (const auto& lengths : {std::vector<int32_t>{0, 400, 20, 380, 5}, {0, 400, 0, 400}}) {
    const Packing packing{lengths, lengths, 400, 400};
    CHECK_EQUAL(run(draw(packing, heads), heads, packing).lse.size(), size_t{400});
  }
}

TEST(packed_sequences_come_longest_first_and_their_tiles_once) {
  // 600 sequences, more than there are buckets and threads, some empty.
  std::mt19937 random(3);
  std::vector<int32_t> cu_seqlens{17};
  for (int i = 0; i < 600; ++i) {
    cu_seqlens.push_back(cu_seqlens.back() +
                         static_cast<int>(random() % 4 == 0 ? 0 : random() % 900));
  }
  const int batch = 600, rows = cu_seqlens.back() + 300;
  std::vector<int32_t> workspace(attention::packed_schedule_workspace(batch), -1);
  attention::AttentionForward params{};
  params.cu_seqlens_q = params.cu_seqlens_k = cu_seqlens.data();
  params.batch = batch;
  params.tokens = params.keys = rows;
  params.longest_k = 900;
  params.heads = params.kv_heads = 1;
  params.workspace = workspace.data();
  const auto schedule = attention::order_packed_queries<128>(params, 64, nullptr);
  std::vector<int> seen(batch + 2, 0);
  int tiles = 0, last_length = 900;
  for (int place = 0; place < batch + 2; ++place) {
    const int span = schedule.order[place];
    CHECK(span >= 0 && span < batch + 2);
    ++seen[span];
    CHECK_EQUAL(schedule.first_tiles[place], tiles);
    const bool apart = span == 0 || span == batch + 1;
    const int length = span == 0           ? 17
                       : span == batch + 1 ? 300
                                           : cu_seqlens[span] - cu_seqlens[span - 1];
    tiles += (length + 127) / 128;
    // A bucket is four lengths wide.
    CHECK(apart || length < last_length + 4);
    last_length = apart ? 0 : length;
  }
  CHECK_EQUAL(schedule.first_tiles[batch + 2], tiles);
  CHECK(tiles <= attention::packed_tiles(rows, batch, 128));
  for (const int count : seen) CHECK_EQUAL(count, 1);
}

}  // namespace
