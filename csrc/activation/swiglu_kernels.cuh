// swiglu kernels. Formulas: swiglu.h; how rows and columns are shared out: row_plan.h.
//
// Bytes: forward reads gate and up and writes y, backward reads dy, gate and up and writes dgate
// and dup: 24 and 40 KB for a row of 4,096 bfloat16. Nothing is read twice.
#pragma once

#include "activation/swiglu.h"
#include "activation/warp_place.cuh"
#include "device/math.h"
#include "device/vector.h"

namespace llmjp::activation {

// Rows of a warp, all on their way at a time: 16 and 24 KB a block.
constexpr int kSwigluForwardRows = 2;
constexpr int kSwigluBackwardRows = 2;

// Blocks that share a multiprocessor: 64 and 80 registers a thread.
constexpr int kSwigluForwardBlocks = 4;
constexpr int kSwigluBackwardBlocks = 3;

// σ(g) and 1 − σ(g). The latter is exp(−g) · σ(g): a difference would cancel where σ(g) is near 1.
// An exponential that overflows belongs to a σ(g) of 0.
struct Logistic {
  float share;
  float rest;

  LLMJP_DEVICE explicit Logistic(float g) {
    constexpr float kLog2E = 1.44269504f;
    const float exponential = device::exp2_approx(-kLog2E * g);
    share = device::reciprocal_approx(1.0f + exponential);
    rest = exponential < 1e38f ? exponential * share : 1.0f;
  }
};

// kChunk is 1 for rows that are not 16-byte aligned.
template <class T, int kChunk>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kThreads, kSwigluForwardBlocks)
    swiglu_forward_kernel(SwigluForward p, int64_t column_tiles) {
  using Chunk = device::Vector<T, kChunk>;
  const WarpPlace<kChunk> place(column_tiles);
  const int64_t first_row = place.group * kSwigluForwardRows;
  if (place.column >= p.width || first_row >= p.rows) return;

  const T* gate = static_cast<const T*>(p.gate) + first_row * p.gate_stride + place.column;
  const T* up = static_cast<const T*>(p.up) + first_row * p.up_stride + place.column;
  T* y = static_cast<T*>(p.y) + first_row * p.width + place.column;
  Chunk held_gate[kSwigluForwardRows];
  Chunk held_up[kSwigluForwardRows];
  LLMJP_UNROLL
  for (int r = 0; r < kSwigluForwardRows; ++r) {
    if (first_row + r < p.rows) {
      held_gate[r] = device::load_once<Chunk>(gate + r * p.gate_stride);
      held_up[r] = device::load_once<Chunk>(up + r * p.up_stride);
    }
  }
  LLMJP_UNROLL
  for (int r = 0; r < kSwigluForwardRows; ++r) {
    if (first_row + r >= p.rows) return;
    float g[kChunk];
    float u[kChunk];
    device::to_floats(held_gate[r], g);
    device::to_floats(held_up[r], u);
    LLMJP_UNROLL
    for (int i = 0; i < kChunk; ++i) u[i] *= g[i] * Logistic(g[i]).share;
    device::store(y + r * p.width, device::from_floats<T>(u));
  }
}

template <class T, int kChunk>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kThreads, kSwigluBackwardBlocks)
    swiglu_backward_kernel(SwigluBackward p, int64_t column_tiles) {
  using Chunk = device::Vector<T, kChunk>;
  const WarpPlace<kChunk> place(column_tiles);
  const int64_t first_row = place.group * kSwigluBackwardRows;
  if (place.column >= p.width || first_row >= p.rows) return;

  Chunk held_dy[kSwigluBackwardRows];
  Chunk held_gate[kSwigluBackwardRows];
  Chunk held_up[kSwigluBackwardRows];
  LLMJP_UNROLL
  for (int r = 0; r < kSwigluBackwardRows; ++r) {
    const int64_t row = first_row + r;
    if (row < p.rows) {
      const auto chunk = [&](const void* rows, int64_t stride) {
        return device::load_once<Chunk>(static_cast<const T*>(rows) + row * stride + place.column);
      };
      held_dy[r] = chunk(p.dy, p.dy_stride);
      held_gate[r] = chunk(p.gate, p.gate_stride);
      held_up[r] = chunk(p.up, p.up_stride);
    }
  }
  LLMJP_UNROLL
  for (int r = 0; r < kSwigluBackwardRows; ++r) {
    if (first_row + r >= p.rows) return;
    float dy[kChunk];
    float g[kChunk];
    float u[kChunk];
    device::to_floats(held_dy[r], dy);
    device::to_floats(held_gate[r], g);
    device::to_floats(held_up[r], u);
    LLMJP_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      const Logistic logistic(g[i]);
      const float gate = g[i];
      g[i] = dy[i] * u[i] * (logistic.share * (1.0f + gate * logistic.rest));
      u[i] = dy[i] * (gate * logistic.share);
    }
    const int64_t offset = (first_row + r) * p.width + place.column;
    device::store(static_cast<T*>(p.dgate) + offset, device::from_floats<T>(g));
    device::store(static_cast<T*>(p.dup) + offset, device::from_floats<T>(u));
  }
}

}  // namespace llmjp::activation
