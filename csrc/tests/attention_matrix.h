// A matrix as the attention kernels take it, in a buffer of exactly its size.
#pragma once

#include <random>
#include <vector>

#include "attention/attention.h"
#include "device/dtype.h"

namespace llmjp::tests {

// A [tokens, heads, head_dim] matrix within rows of `row` elements, the last ending with its data.
struct Matrix {
  std::vector<device::bfloat16> elements;
  int row;
  int head_dim;

  Matrix(int tokens, int heads, int head_dim_in, int row_in)
      : elements(static_cast<size_t>(tokens - 1) * row_in + heads * head_dim_in),
        row(row_in),
        head_dim(head_dim_in) {
    elements.shrink_to_fit();
  }
  void draw(std::mt19937& random) {
    std::normal_distribution<float> normal;
    for (auto& element : elements) element = device::from_float<device::bfloat16>(normal(random));
  }
  double at(int token, int head, int d) const {
    return device::to_float(elements[static_cast<size_t>(token) * row + head * head_dim + d]);
  }
  attention::Strides strides() const { return {0, row, head_dim}; }
};

}  // namespace llmjp::tests
