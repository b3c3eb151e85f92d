// One 64 × 64 × 64 attention tile in the vocabulary that attention kernels are written in: cp.async
// into swizzled tiles, S = Q·Kᵀ by mma, softmax in registers, P rounded and reused as an operand, O
// = P·V with transposed loads of V. It shows that the words fit together, that simt runs them in
// milliseconds, and that the swizzle leaves no bank conflict.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "device/cp_async.h"
#include "device/math.h"
#include "device/mma.h"
#include "device/shared.h"
#include "device/shuffle.h"
#include "device/thread.h"
#include "device/tile.h"
#include "tests/check.h"

namespace {

using namespace llmjp;

constexpr int kSize = 64;  // queries, keys and head dimension
constexpr int kWarps = 4;  // each owns 16 queries
using Tile = device::SwizzledTile<device::bfloat16, kSize, kSize>;

void copy_tile(const Tile& tile, const device::bfloat16* global) {
  for (int chunk = device::thread_index(); chunk < kSize * Tile::kChunksPerRow;
       chunk += kWarps * 32) {
    const int row = chunk / Tile::kChunksPerRow, column = chunk % Tile::kChunksPerRow;
    device::cp_async(tile.at(row, column), global + row * kSize + column * 8);
  }
  device::cp_async_commit_group();
}

void attention_tile_kernel(const device::bfloat16* q, const device::bfloat16* k,
                           const device::bfloat16* v, float* out) {
  auto* shared = device::dynamic_shared<device::bfloat16>();
  const Tile q_smem{shared}, k_smem{shared + kSize * kSize}, v_smem{shared + 2 * kSize * kSize};
  copy_tile(q_smem, q);
  copy_tile(k_smem, k);
  copy_tile(v_smem, v);
  device::cp_async_wait_group<0>();
  device::sync_threads();

  const int lane = device::lane_index();
  const int first_query = device::warp_index() * 16;
  float s_frag[kSize / 8][4] = {};  // 16 queries × 64 keys
  for (int step = 0; step < kSize / 16; ++step) {
    uint32_t q_frag[4];
    device::ldmatrix(q_frag, q_smem.at(first_query + lane % 16, step * 2 + lane / 16));
    for (int pair = 0; pair < kSize / 16; ++pair) {
      // Two tiles of eight keys: lanes 0–7 and 8–15 name the first tile's two halves of k, 16–31
      // the second's.
      uint32_t k_frag[4];
      device::ldmatrix(k_frag,
                       k_smem.at(pair * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
      device::mma_m16n8k16<device::bfloat16>(s_frag[pair * 2], q_frag, {k_frag[0], k_frag[1]});
      device::mma_m16n8k16<device::bfloat16>(s_frag[pair * 2 + 1], q_frag, {k_frag[2], k_frag[3]});
    }
  }

  // A lane holds two rows (registers 0, 1 and 2, 3); the four lanes of a group share them.
  float row_sum[2] = {};
  for (int half = 0; half < 2; ++half) {
    float row_max = -INFINITY;
    for (auto& tile : s_frag) row_max = std::max({row_max, tile[half * 2], tile[half * 2 + 1]});
    row_max = std::max(row_max, device::shuffle_xor(row_max, 1));
    row_max = std::max(row_max, device::shuffle_xor(row_max, 2));
    const float scale = 1.4426950408889634f / 8.0f;  // log2(e) / sqrt(64)
    for (auto& tile : s_frag) {
      for (int i = 0; i < 2; ++i) {
        float& value = tile[half * 2 + i];
        value = device::exp2_approx((value - row_max) * scale);
        row_sum[half] += value;
      }
    }
    row_sum[half] += device::shuffle_xor(row_sum[half], 1);
    row_sum[half] += device::shuffle_xor(row_sum[half], 2);
  }

  float o_frag[kSize / 8][4] = {};
  for (int step = 0; step < kSize / 16; ++step) {
    const auto& left = s_frag[step * 2];
    const auto& right = s_frag[step * 2 + 1];
    const uint32_t p_frag[4] = {device::pack<device::bfloat16>(left[0], left[1]),
                                device::pack<device::bfloat16>(left[2], left[3]),
                                device::pack<device::bfloat16>(right[0], right[1]),
                                device::pack<device::bfloat16>(right[2], right[3])};
    for (int pair = 0; pair < kSize / 16; ++pair) {
      uint32_t v_frag[4];
      device::ldmatrix_trans(v_frag, v_smem.at(step * 16 + lane % 16, pair * 2 + lane / 16));
      device::mma_m16n8k16<device::bfloat16>(o_frag[pair * 2], p_frag, {v_frag[0], v_frag[1]});
      device::mma_m16n8k16<device::bfloat16>(o_frag[pair * 2 + 1], p_frag, {v_frag[2], v_frag[3]});
    }
  }
  for (int tile = 0; tile < kSize / 8; ++tile) {
    for (int i = 0; i < 4; ++i) {
      const int query = first_query + lane / 4 + i / 2 * 8;
      out[query * kSize + tile * 8 + lane % 4 * 2 + i % 2] = o_frag[tile][i] / row_sum[i / 2];
    }
  }
}

TEST(attention_tile_of_64_is_right_and_takes_milliseconds) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  struct alignas(16) Matrix {
    device::bfloat16 values[kSize * kSize];
  };
  static Matrix q, k, v;
  for (Matrix* matrix : {&q, &k, &v}) {
    for (auto& value : matrix->values) value = device::from_float<device::bfloat16>(normal(random));
  }
  std::vector<float> out(kSize * kSize, NAN);
  const auto start = std::chrono::steady_clock::now();
  const simt::Statistics seen = simt::launch(tests::grid(1, kWarps * 32, 3 * Tile::kBytes), [&] {
    attention_tile_kernel(q.values, k.values, v.values, out.data());
  });
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  std::printf("64 x 64 x 64 attention tile: %.2f ms, %llu warp instructions\n", took.count(),
              static_cast<unsigned long long>(seen.warp_instructions));
  CHECK_EQUAL(seen.matrix_row_conflicts, uint64_t{0});

  const auto at = [](const Matrix& matrix, int row, int column) {
    return static_cast<double>(device::to_float(matrix.values[row * kSize + column]));
  };
  for (int query = 0; query < kSize; ++query) {
    double weights[kSize], sum = 0.0;
    for (int key = 0; key < kSize; ++key) {
      double score = 0.0;
      for (int d = 0; d < kSize; ++d) score += at(q, query, d) * at(k, key, d);
      sum += weights[key] = std::exp(score / 8.0);
    }
    for (int d = 0; d < kSize; ++d) {
      double expected = 0.0;
      for (int key = 0; key < kSize; ++key) expected += weights[key] / sum * at(v, key, d);
      // P is rounded to 8 bits before the second product; |V| stays below 5.
      CHECK(std::abs(out[query * kSize + d] - expected) < 5.0 / 256);
    }
  }
}

}  // namespace
