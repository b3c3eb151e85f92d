// The rotary kernel. Formulas: rotary.h.
//
// A block is one token of one batch. A unit is what one thread turns or copies of a head: a chunk
// of 16 bytes from each half of the pairs (interleaved: one chunk, which holds whole pairs), or one
// chunk that only moves. A thread keeps the angles of its unit in registers and takes the unit of
// one head after another, queries first.
//
// Bytes: each element is read and written once. Angles are read once a token: 1/64 of the rest for
// 32 + 32 heads and fp32 angles beside bfloat16.
#pragma once

#include "device/thread.h"
#include "device/vector.h"
#include "rotary/rotary.h"

namespace llmjp::rotary {

constexpr int kThreads = 256;

// Heads that a thread has on their way at a time.
constexpr int kHeads = 2;

// Whether the two elements of a pair lie in two chunks: always but where pairs lie within one.
template <bool kInterleaved, int kChunk>
constexpr bool kSplit = !kInterleaved || kChunk == 1;

template <bool kInterleaved, int kChunk>
constexpr int kPairsOfUnit = kSplit<kInterleaved, kChunk> ? kChunk : kChunk / 2;

// Where a unit stands in a head, as elements.
template <bool kInterleaved, int kChunk>
struct Unit {
  bool turns;
  int first_pair;
  int first;
  int second;  // of the pairs' other elements, where these lie in a chunk of their own

  LLMJP_DEVICE Unit(int index, int pairs) {
    constexpr int kPairs = kPairsOfUnit<kInterleaved, kChunk>;
    first_pair = index * kPairs;
    turns = first_pair < pairs;
    if (!turns) {
      first = 2 * pairs + (index - pairs / kPairs) * kChunk;
      second = first;
    } else if (kInterleaved) {
      first = 2 * first_pair;
      second = first + 1;
    } else {
      first = first_pair;
      second = first + pairs;
    }
  }
};

template <class T, int kChunk>
struct Held {
  device::Vector<T, kChunk> first;
  device::Vector<T, kChunk> second;
};

template <class T>
struct HeadPlace {
  const T* x;
  T* y;
};

// Head `index` of the token: queries, then keys.
template <class T>
LLMJP_DEVICE HeadPlace<T> head_place(const RotaryForward& p, int64_t batch, int64_t token,
                                     int64_t index) {
  const bool is_query = index < p.q.heads;
  const Operand& operand = is_query ? p.q : p.k;
  const int64_t head = is_query ? index : index - p.q.heads;
  const auto offset = [&](const Strides& s) {
    return batch * s.batch + token * s.token + head * s.head;
  };
  return {static_cast<const T*>(operand.x) + offset(operand.x_strides),
          static_cast<T*>(operand.y) + offset(operand.y_strides)};
}

template <class A, int kPairs>
LLMJP_DEVICE void load_angles(const RotaryForward& p, int64_t offset, float (&cos)[kPairs],
                              float (&sin)[kPairs]) {
  device::load_floats(static_cast<const A*>(p.cos) + offset, cos);
  device::load_floats(static_cast<const A*>(p.sin) + offset, sin);
  if (p.inverse) {
    LLMJP_UNROLL
    for (int i = 0; i < kPairs; ++i) sin[i] = -sin[i];
  }
}

template <bool kInterleaved, class T, int kChunk, int kPairs>
LLMJP_DEVICE void turn(Held<T, kChunk>& held, const float (&cos)[kPairs],
                       const float (&sin)[kPairs]) {
  float a[kChunk];
  device::to_floats(held.first, a);
  if constexpr (kSplit<kInterleaved, kChunk>) {
    float b[kChunk];
    device::to_floats(held.second, b);
    LLMJP_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      const float x1 = a[i];
      const float x2 = b[i];
      a[i] = x1 * cos[i] - x2 * sin[i];
      b[i] = x2 * cos[i] + x1 * sin[i];
    }
    held.second = device::from_floats<T>(b);
  } else {
    LLMJP_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      const float x1 = a[2 * i];
      const float x2 = a[2 * i + 1];
      a[2 * i] = x1 * cos[i] - x2 * sin[i];
      a[2 * i + 1] = x2 * cos[i] + x1 * sin[i];
    }
  }
  held.first = device::from_floats<T>(a);
}

// kChunk is 16 bytes of T, or 1 where heads are not made of whole aligned chunks.
template <class T, class A, bool kInterleaved, int kChunk>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kThreads, 4)
    rotary_forward_kernel(RotaryForward p, int units, int heads_at_a_time) {
  constexpr int kPairs = kPairsOfUnit<kInterleaved, kChunk>;
  using Chunk = device::Vector<T, kChunk>;
  const int thread = device::thread_index();
  const int64_t first_head = thread / units;
  if (first_head >= heads_at_a_time) return;  // units need not divide the threads
  const Unit<kInterleaved, kChunk> unit(thread % units, static_cast<int>(p.pairs));
  const int64_t token = device::block_index_x() % p.tokens;
  const int64_t batch = device::block_index_x() / p.tokens;

  float cos[kPairs];
  float sin[kPairs];
  if (unit.turns) {
    const int64_t row = batch * p.angle_batch_stride + token * p.pairs;
    load_angles<A>(p, row + unit.first_pair, cos, sin);
  }
  const bool two_chunks = kSplit<kInterleaved, kChunk> && unit.turns;
  const int64_t heads = p.q.heads + p.k.heads;
  for (int64_t base = first_head; base < heads; base += int64_t{kHeads} * heads_at_a_time) {
    Held<T, kChunk> held[kHeads];
    LLMJP_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      const int64_t head = base + int64_t{h} * heads_at_a_time;
      if (head >= heads) break;
      const T* x = head_place<T>(p, batch, token, head).x;
      held[h].first = device::load<Chunk>(x + unit.first);
      if (two_chunks) held[h].second = device::load<Chunk>(x + unit.second);
    }
    LLMJP_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      const int64_t head = base + int64_t{h} * heads_at_a_time;
      if (head >= heads) break;
      if (unit.turns) turn<kInterleaved>(held[h], cos, sin);
      T* y = head_place<T>(p, batch, token, head).y;
      device::store(y + unit.first, held[h].first);
      if (two_chunks) device::store(y + unit.second, held[h].second);
    }
  }
}

}  // namespace llmjp::rotary
