// Launches of the rotary kernel for one combination of types.
#pragma once

#include <cstdint>

#include "device/dtype.h"
#include "host/launch.h"
#include "rotary/rotary_kernels.cuh"
#include "rotary/rotary_launch.h"

namespace llmjp::rotary {

inline bool is_aligned(const Operand& operand, int64_t chunk) {
  for (const void* pointer : {operand.x, static_cast<const void*>(operand.y)}) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return false;
  }
  for (const Strides& s : {operand.x_strides, operand.y_strides}) {
    if (s.batch % chunk != 0 || s.token % chunk != 0 || s.head % chunk != 0) return false;
  }
  return true;
}

// Whether every head, and every half of its pairs, is made of whole chunks of 16 bytes.
inline bool takes_chunks(const RotaryForward& p) {
  const int64_t chunk = 16 / host::size_in_bytes(p.type);
  for (const void* pointer : {p.cos, p.sin}) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return false;
  }
  const int64_t pairs_of_chunk = p.interleaved ? chunk / 2 : chunk;
  return p.pairs % pairs_of_chunk == 0 && p.head_dim % chunk == 0 &&
         p.angle_batch_stride % pairs_of_chunk == 0 && is_aligned(p.q, chunk) &&
         is_aligned(p.k, chunk);
}

template <class T, class A, bool kInterleaved, int kChunk>
void launch_chunks(const RotaryForward& p, host::Stream stream) {
  constexpr int kPairs = kPairsOfUnit<kInterleaved, kChunk>;
  const int64_t rest = p.in_place ? 0 : p.head_dim - 2 * p.pairs;
  const int units = static_cast<int>(p.pairs / kPairs + rest / kChunk);
  host::launch("rotary_forward", rotary_forward_kernel<T, A, kInterleaved, kChunk>,
               {p.batch * p.tokens, kThreads, 0, stream}, p, units, kThreads / units);
}

template <class T, class A>
void launch_rotary_forward(const RotaryForward& p, host::Stream stream) {
  constexpr int kChunk = device::kVectorElements<T>;
  if (p.interleaved) {
    return takes_chunks(p) ? launch_chunks<T, A, true, kChunk>(p, stream)
                           : launch_chunks<T, A, true, 1>(p, stream);
  }
  return takes_chunks(p) ? launch_chunks<T, A, false, kChunk>(p, stream)
                         : launch_chunks<T, A, false, 1>(p, stream);
}

}  // namespace llmjp::rotary
