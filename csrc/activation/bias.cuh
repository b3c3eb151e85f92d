// A bias in registers, and its gradient's sums on their way to the workspace.
#pragma once

#include <cstdint>

#include "device/vector.h"

namespace llmjp::activation {

// The bias of a thread's columns, zeros where there is none.
template <class B, int kChunk>
LLMJP_DEVICE void load_bias(const void* bias, int64_t column, float (&values)[kChunk]) {
  if (bias != nullptr) {
    device::load_floats(static_cast<const B*>(bias) + column, values);
  } else {
    LLMJP_UNROLL
    for (int i = 0; i < kChunk; ++i) values[i] = 0.0f;
  }
}

// A thread's sums, as its group's part of them.
template <int kChunk>
LLMJP_DEVICE void store_sums(float* partial, const float (&sums)[kChunk]) {
  constexpr int kPiece = kChunk < 4 ? kChunk : 4;
  LLMJP_UNROLL
  for (int i = 0; i < kChunk; i += kPiece) {
    device::Vector<float, kPiece> piece;
    LLMJP_UNROLL
    for (int j = 0; j < kPiece; ++j) piece.elements[j] = sums[i + j];
    device::store(partial + i, piece);
  }
}

}  // namespace llmjp::activation
