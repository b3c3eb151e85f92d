// A tile of 16-bit elements in shared memory whose rows ldmatrix reads without bank conflicts.
//
// Shared memory serves 128 bytes a pass, and ldmatrix reads eight rows of 16 bytes: stored plainly,
// rows of 128 bytes all begin in the same banks and take eight passes. Here the 16-byte chunk c of
// row i stands at place c ^ (i % 8) of its group of eight chunks, so that eight consecutive rows of
// one chunk column lie in eight different places.
#pragma once

#include "device/platform.h"
#include "device/vector.h"

namespace llmjp::device {

template <class T, int kRowCount, int kColumnCount>
struct SwizzledTile {
  static_assert(sizeof(T) == 2, "the swizzle is made for 16-bit elements");
  static_assert(kColumnCount % 64 == 0, "a row is whole groups of eight 16-byte chunks");

  static constexpr int kRows = kRowCount;
  static constexpr int kColumns = kColumnCount;
  static constexpr int kChunkElements = 8;
  static constexpr int kChunksPerRow = kColumns / kChunkElements;
  static constexpr int kBytes = kRows * kColumns * static_cast<int>(sizeof(T));

  T* base;  // 128-byte aligned

  // The 16 bytes that hold columns chunk · 8 … chunk · 8 + 7 of `row`.
  LLMJP_DEVICE T* at(int row, int chunk) const {
    return base + row * kColumns + (chunk ^ (row % 8)) * kChunkElements;
  }

  // The same for chunk 2 · pair + side, side being 0 or 1, with what a constant `pair` adds kept
  // apart: of the eight addresses that ldmatrix needs along 128 columns four remain to be computed,
  // and multiples of eight rows can be added to any of them as r · kColumns. Constants end up in
  // the instruction.
  LLMJP_DEVICE T* at(int row, int pair, int side) const {
    return base + row * kColumns + ((pair % 4 * 2 | side) ^ (row % 8)) * kChunkElements +
           pair / 4 * 8 * kChunkElements;
  }
};

}  // namespace llmjp::device
