// What runs before and after the main kernel of attention's backward pass, row by row of q.
//
// prepare: delta and lse as that kernel wants them, and the sums of dq set to 0. Reads out and
// dout, writes 4 bytes an element. finish: dq = scale · sums, rounded. Reads 4 bytes an element,
// writes 2.
#pragma once

#include "attention/attention.h"
#include "attention/backward_tiles.h"
#include "attention/backward_workspace.cuh"
#include "attention/scores.cuh"
#include "attention/sequences.cuh"
#include "device/shuffle.h"
#include "device/thread.h"
#include "device/vector.h"

namespace llmjp::attention {

constexpr int kBackwardRowsThreads = 256;

// A block takes the tile of kBackwardQueries rows of a head whose record its index names.
template <bool kPacked>
struct RowPlace {
  Sequence<kPacked> sequence;
  int head;
  int tile;
};

template <bool kPacked>
LLMJP_DEVICE RowPlace<kPacked> row_place(const AttentionBackward& p) {
  const int tiles = tiles_of_head<kPacked>(p);
  const int head = device::block_index_x() / tiles;
  const int tile = device::block_index_x() % tiles;
  if constexpr (kPacked) {
    const int span =
        last_at_most(tile, p.batch + 2, [&](int span) { return first_record_of_span(p, span); });
    return {sequence_at<true>(p, span - 1), head, tile - first_record_of_span(p, span)};
  } else {
    return {sequence_at<false>(p, head / p.heads), head % p.heads, tile};
  }
}

template <class T, int kHeadDim, bool kPacked>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kBackwardRowsThreads, 1)
    attention_backward_prepare_kernel(AttentionBackward p) {
  using Piece = device::Vector<T, 8>;
  using Scratch = BackwardScratch<kHeadDim>;
  constexpr int kLanesPerRow = kHeadDim / 8;
  constexpr int kRowsPerPass = kBackwardRowsThreads / kLanesPerRow;
  const auto place = row_place<kPacked>(p);
  const auto record = backward_record<kHeadDim>(p.workspace, device::block_index_x());
  const int thread = device::thread_index();

  const device::Vector<float, 4> zeros{};
  LLMJP_UNROLL
  for (int piece = 0; piece < Scratch::kSums / 4 / kBackwardRowsThreads; ++piece) {
    device::store(record.sums + (piece * kBackwardRowsThreads + thread) * 4, zeros);
  }
  if (thread < Scratch::kTurns) record.turns()[thread] = 0;
  if (device::block_index_x() == 0 && thread == 0) {
    reinterpret_cast<int*>(p.workspace)[Scratch::kStarted] = 0;
  }

  const T* out = place.sequence.template queries<T>(p.out, p.out_strides, place.head);
  const T* dout = place.sequence.template queries<T>(p.dout, p.dout_strides, place.head);
  const int column = thread % kLanesPerRow * 8;
  float* const statistics = record.statistics();
  LLMJP_UNROLL
  for (int pass = 0; pass < kBackwardQueries / kRowsPerPass; ++pass) {
    const int row = pass * kRowsPerPass + thread / kLanesPerRow;
    const int64_t query = place.tile * kBackwardQueries + row;
    float sum = 0.0f;
    if (query < place.sequence.tokens && column < p.head_dim) {
      float a[8], b[8];
      device::to_floats(device::load<Piece>(out + query * p.out_strides.token + column), a);
      device::to_floats(device::load<Piece>(dout + query * p.dout_strides.token + column), b);
      LLMJP_UNROLL
      for (int i = 0; i < 8; ++i) sum += a[i] * b[i];
    }
    LLMJP_UNROLL
    for (int lanes = kLanesPerRow / 2; lanes > 0; lanes /= 2) {
      sum += device::shuffle_xor(sum, lanes);
    }
    if (column != 0) continue;
    float exponent = kInfinity;  // P = 0 in a row without keys, and in one that does not exist
    float delta = 0.0f;
    if (query < place.sequence.tokens) {
      const int64_t place_of_lse = place.sequence.lse_row(p, place.head) + query;
      const float lse = p.lse[place_of_lse];
      if (lse != -kInfinity) {
        exponent = lse * kLog2E;
        delta = p.dlse == nullptr ? sum : sum - p.dlse[place_of_lse];
      }
    }
    statistics[row] = exponent;
    statistics[kBackwardQueries + row] = delta;
  }
}

template <class T, int kHeadDim, bool kPacked>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kBackwardRowsThreads, 1)
    attention_backward_finish_kernel(AttentionBackward p) {
  using Sums = device::Vector<float, 4>;
  constexpr int kChunks = kHeadDim / 8;
  const auto place = row_place<kPacked>(p);
  const float* const sums = backward_record<kHeadDim>(p.workspace, device::block_index_x()).sums;
  const int64_t row_stride = int64_t{p.heads} * p.head_dim;
  T* const dq =
      static_cast<T*>(p.dq) + (place.sequence.query_row() * p.heads + place.head) * p.head_dim;
  LLMJP_UNROLL
  for (int pass = 0; pass < kBackwardQueries * kChunks / kBackwardRowsThreads; ++pass) {
    // A row of eight columns is spread over four lanes of two accumulators.
    const int piece = pass * kBackwardRowsThreads + device::thread_index();
    const int group = piece % 8;
    const int half = piece / 8 % 2;
    const int chunk = piece / 16 % kChunks;
    const int atom = piece / 16 / kChunks;
    const int row = atom * 16 + half * 8 + group;
    const int64_t query = place.tile * kBackwardQueries + row;
    if (query >= place.sequence.tokens || chunk * 8 >= p.head_dim) continue;
    const float* const block = sums + (atom * kChunks + chunk) * 128 + half * 64 + group * 4;
    const Sums even = device::load<Sums>(block);
    const Sums odd = device::load<Sums>(block + 32);
    float values[8];
    LLMJP_UNROLL
    for (int i = 0; i < 4; ++i) {
      values[2 * i] = even.elements[i] * p.scale;
      values[2 * i + 1] = odd.elements[i] * p.scale;
    }
    device::store(dq + query * row_stride + chunk * 8, device::from_floats<T>(values));
  }
}

}  // namespace llmjp::attention
