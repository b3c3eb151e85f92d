// Matrix products of a warp, their results in the accumulators of m16n8k16: value [atom][tile][r]
// of a lane stands in row 16 · atom + lane / 4 + 8 · (r / 2), column 8 · tile + lane % 4 · 2 + r
// % 2.
#pragma once

#include "device/mma.h"
#include "device/tile.h"

namespace llmjp::attention {

template <int kAtoms, int kTiles>
LLMJP_DEVICE void clear(float (&sums)[kAtoms][kTiles][4]) {
  LLMJP_UNROLL
  for (int atom = 0; atom < kAtoms; ++atom) {
    LLMJP_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      LLMJP_UNROLL
      for (int r = 0; r < 4; ++r) sums[atom][tile][r] = 0.0f;
    }
  }
}

// products = a · bᵀ for the rows of a from `first_row` on and as many rows of b as fit.
template <class T, int kAtoms, int kTiles, class ATile, class BTile>
LLMJP_DEVICE void multiply_rows(float (&products)[kAtoms][kTiles][4], const ATile& a,
                                const BTile& b, int first_row, int lane) {
  clear(products);
  LLMJP_UNROLL
  for (int step = 0; step < ATile::kColumns / 16; ++step) {
    const T* a_rows = a.at(first_row + lane % 16, step, lane / 16);
    // Two tiles of eight rows of b at once: lanes 0-15 name the first's two halves of the step,
    // 16-31 the second's, so that an operand's two registers are neighbours and none is moved.
    const T* b_rows = b.at(lane / 16 * 8 + lane % 8, step, lane / 8 % 2);
    uint32_t a_fragment[kAtoms][4];
    LLMJP_UNROLL
    for (int atom = 0; atom < kAtoms; ++atom) {
      device::ldmatrix(a_fragment[atom], a_rows + atom * 16 * ATile::kColumns);
    }
    LLMJP_UNROLL
    for (int pair = 0; pair < kTiles / 2; ++pair) {
      uint32_t b_fragment[4];
      device::ldmatrix(b_fragment, b_rows + pair * 16 * BTile::kColumns);
      LLMJP_UNROLL
      for (int atom = 0; atom < kAtoms; ++atom) {
        device::mma_m16n8k16<T>(products[atom][pair * 2], a_fragment[atom],
                                {b_fragment[0], b_fragment[1]});
        device::mma_m16n8k16<T>(products[atom][pair * 2 + 1], a_fragment[atom],
                                {b_fragment[2], b_fragment[3]});
      }
    }
  }
}

// sums += a · b for sixteen columns of a, which are rows of b from `first_row` on, and the columns
// of b from 16 · `first_pair` on.
template <class T, int kAtoms, int kTiles, class BTile>
LLMJP_DEVICE void multiply_step(float (&sums)[kAtoms][kTiles][4],
                                const uint32_t (&a_fragment)[kAtoms][4], const BTile& b,
                                int first_row, int first_pair, int lane) {
  LLMJP_UNROLL
  for (int pair = 0; pair < kTiles / 2; ++pair) {
    uint32_t b_fragment[4];
    device::ldmatrix_trans(
        b_fragment, b.at(lane % 16, first_pair + pair, lane / 16) + first_row * BTile::kColumns);
    LLMJP_UNROLL
    for (int atom = 0; atom < kAtoms; ++atom) {
      device::mma_m16n8k16<T>(sums[atom][pair * 2], a_fragment[atom],
                              {b_fragment[0], b_fragment[1]});
      device::mma_m16n8k16<T>(sums[atom][pair * 2 + 1], a_fragment[atom],
                              {b_fragment[2], b_fragment[3]});
    }
  }
}

// sums += a · b, a being accumulators rounded to T.
template <class T, int kAtoms, int kTiles, int kSumTiles, class BTile>
LLMJP_DEVICE void multiply_accumulators(float (&sums)[kAtoms][kSumTiles][4],
                                        const float (&a)[kAtoms][kTiles][4], const BTile& b,
                                        int lane) {
  LLMJP_UNROLL
  for (int step = 0; step < kTiles / 2; ++step) {
    uint32_t a_fragment[kAtoms][4];
    LLMJP_UNROLL
    for (int atom = 0; atom < kAtoms; ++atom) {
      LLMJP_UNROLL
      for (int r = 0; r < 4; ++r) {
        const float (&values)[4] = a[atom][step * 2 + r / 2];
        a_fragment[atom][r] = device::pack<T>(values[r % 2 * 2], values[r % 2 * 2 + 1]);
      }
    }
    multiply_step<T>(sums, a_fragment, b, step * 16, 0, lane);
  }
}

// sums += a · b, a being rows of a tile from `first_row` on, b's columns from 16 · `first_pair` on.
// kTransposed: the tile holds aᵀ.
template <class T, bool kTransposed, int kAtoms, int kSumTiles, class ATile, class BTile>
LLMJP_DEVICE void multiply_tiles(float (&sums)[kAtoms][kSumTiles][4], const ATile& a,
                                 const BTile& b, int first_row, int first_pair, int lane) {
  LLMJP_UNROLL
  for (int step = 0; step < BTile::kRows / 16; ++step) {
    uint32_t a_fragment[kAtoms][4];
    LLMJP_UNROLL
    for (int atom = 0; atom < kAtoms; ++atom) {
      if constexpr (kTransposed) {
        device::ldmatrix_trans(a_fragment[atom], a.at(lane / 16 * 8 + lane % 8,
                                                      first_row / 8 + atom * 2 + lane / 8 % 2) +
                                                     step * 16 * ATile::kColumns);
      } else {
        device::ldmatrix(a_fragment[atom], a.at(first_row + lane % 16, step, lane / 16) +
                                               atom * 16 * ATile::kColumns);
      }
    }
    multiply_step<T>(sums, a_fragment, b, step * 16, first_pair, lane);
  }
}

}  // namespace llmjp::attention
