// Values that lanes of a warp hand to each other. None of these orders memory: that is sync_warp's.
#pragma once

#include <cstring>

#include "device/platform.h"
#include "device/thread.h"

namespace llmjp::device {

#if defined(__CUDACC__)

template <class T>
LLMJP_DEVICE T shuffle(T value, int source_lane, uint32_t mask = kFullMask) {
  return __shfl_sync(mask, value, source_lane);
}
template <class T>
LLMJP_DEVICE T shuffle_xor(T value, int lane_bits, uint32_t mask = kFullMask) {
  return __shfl_xor_sync(mask, value, lane_bits);
}
// The value of the lane `distance` below; lanes that have none keep their own.
template <class T>
LLMJP_DEVICE T shuffle_up(T value, int distance, uint32_t mask = kFullMask) {
  return __shfl_up_sync(mask, value, distance);
}
// The value of the lane `distance` above; lanes that have none keep their own.
template <class T>
LLMJP_DEVICE T shuffle_down(T value, int distance, uint32_t mask = kFullMask) {
  return __shfl_down_sync(mask, value, distance);
}
LLMJP_DEVICE uint32_t ballot(bool predicate, uint32_t mask = kFullMask) {
  return __ballot_sync(mask, predicate);
}

#else

template <class T>
T shuffle(T value, int source_lane, uint32_t mask = kFullMask,
          std::source_location where = std::source_location::current()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = simt::shuffle(bits, source_lane % kWarpSize, mask, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T>
T shuffle_xor(T value, int lane_bits, uint32_t mask = kFullMask,
              std::source_location where = std::source_location::current()) {
  return shuffle(value, lane_index() ^ lane_bits, mask, where);
}
template <class T>
T shuffle_up(T value, int distance, uint32_t mask = kFullMask,
             std::source_location where = std::source_location::current()) {
  const int lane = lane_index();
  return shuffle(value, lane >= distance ? lane - distance : lane, mask, where);
}
template <class T>
T shuffle_down(T value, int distance, uint32_t mask = kFullMask,
               std::source_location where = std::source_location::current()) {
  const int lane = lane_index();
  return shuffle(value, lane + distance < kWarpSize ? lane + distance : lane, mask, where);
}
inline uint32_t ballot(bool predicate, uint32_t mask = kFullMask,
                       std::source_location where = std::source_location::current()) {
  return simt::ballot(predicate, mask, where);
}

#endif

}  // namespace llmjp::device
