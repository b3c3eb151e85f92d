// Adds up the parts into which the decode kernel cut the keys, always in the same order:
//
//   largest = max of the parts',  weight = exp2(part's largest − largest)
//   out = Σ weight · sums / Σ weight · sum of p
#pragma once

#include "attention/attention_decode.cuh"
#include "device/math.h"
#include "device/reduce.h"
#include "device/vector.h"

namespace llmjp::attention {

constexpr int kCombineWarps = 4;

// A warp takes a row (batch, head, token); a lane four columns of it at a time.
template <class T>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kCombineWarps * 32, 4)
    attention_decode_combine_kernel(AttentionDecode p) {
  using Quarter = device::Vector<float, 4>;
  constexpr int kAtOnce = 8;  // parts whose sums are on their way together
  const int lane = device::lane_index();
  const int row = device::block_index_x() * kCombineWarps + device::warp_index();
  if (row >= lse_rows(p)) return;

  const auto statistics = [&](int split) {
    return split < p.splits ? device::load<Statistics>(statistics_of_split(p, split, row))
                            : Statistics{{-kInfinity, 0.0f}};
  };
  float top = -kInfinity;
  for (int first = 0; first < p.splits; first += device::kWarpSize) {
    top = device::larger(top, device::warp_max(statistics(first + lane).elements[0]));
  }
  const float offset = top == -kInfinity ? 0.0f : top;

  const int batch_head = quotient(row, p.tokens);
  const int batch_index = quotient(batch_head, p.heads);
  const int token = row - batch_head * p.tokens;
  const int head = batch_head - batch_index * p.heads;
  T* out = static_cast<T*>(p.out) +
           ((int64_t{batch_index} * p.tokens + token) * p.heads + head) * p.head_dim;
  for (int first_column = 0; first_column < p.head_dim; first_column += 4 * device::kWarpSize) {
    const int column = first_column + lane * 4;
    float sum = 0.0f;
    float values[4] = {};
    for (int first = 0; first < p.splits; first += device::kWarpSize) {
      const Statistics own = statistics(first + lane);
      const float weight = device::exp2_approx(own.elements[0] - offset);
      sum += device::warp_sum(own.elements[1] * weight);
      const int parts = p.splits - first < device::kWarpSize ? p.splits - first : device::kWarpSize;
      for (int some = 0; some < parts; some += kAtOnce) {
        float weights[kAtOnce];
        Quarter sums[kAtOnce];
        LLMJP_UNROLL
        for (int i = 0; i < kAtOnce; ++i) {
          weights[i] = device::shuffle(weight, some + i);
          // Nobody has written the sums of a part without keys.
          sums[i] = weights[i] != 0.0f && column < p.head_dim
                        ? device::load<Quarter>(sums_of_split(p, first + some + i, row) + column)
                        : Quarter{};
        }
        LLMJP_UNROLL
        for (int i = 0; i < kAtOnce; ++i) {
          LLMJP_UNROLL
          for (int j = 0; j < 4; ++j) values[j] += sums[i].elements[j] * weights[i];
        }
      }
    }
    const bool blind = sum == 0.0f;
    const float factor = blind ? 0.0f : 1.0f / sum;
    LLMJP_UNROLL
    for (float& value : values) value *= factor;
    if (column < p.head_dim) device::store(out + column, device::from_floats<T>(values));
    if (column == 0) p.lse[row] = blind ? -kInfinity : top * kLn2 + device::natural_log(sum);
  }
}

}  // namespace llmjp::attention
