// How decoding is cut into tiles and parts. Host-side and torch-free.
//
// Decoding reads each key and value once for 4 · rows operations an element pair, rows being the
// query tokens times the heads that share the keys: memory is the limit, and tiles are chosen to
// keep bytes on their way. By Little's law 2.0 TB/s over 600 ns are 1.2 MB on an A100, 11 KB a
// multiprocessor; 3.35 TB/s on an H100 2.0 MB, 15 KB. A block here has all stages but one in
// flight, 48 KB at head_dim 128, and an A100 multiprocessor has two blocks: several times that,
// since latency grows under load and blocks start and end with their pipelines empty.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention/attention_decode.h"

namespace llmjp::attention {

// A block takes kRows rows (query tokens times heads of a group) and walks over its keys kKeys at a
// time, of which kStages tiles with their values are here or on their way. Its warps share out the
// rows, sixteen each, and then the keys of a tile.
template <int kHeadDimension, int kRowWarpCount, int kKeyWarpCount, int kKeyCount, int kStageCount,
          int kBlockCount>
struct DecodeTile {
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr int kRowWarps = kRowWarpCount;
  static constexpr int kKeyWarps = kKeyWarpCount;
  static constexpr int kKeys = kKeyCount;
  static constexpr int kStages = kStageCount;
  static constexpr int kBlocks = kBlockCount;  // that share an A100 multiprocessor
  static constexpr int kWarps = kRowWarps * kKeyWarps;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = 16 * kRowWarps;
  static constexpr int kKeysPerWarp = kKeys / kKeyWarps;
  static constexpr int kStageElements = 2 * kKeys * kHeadDim;
  // While the warps' parts are added up, rows of sums lie 8 floats further apart, which puts the
  // rows that a warp writes at once into different banks.
  static constexpr int kSumStride = kHeadDim + 8;
  static constexpr int kSumFloats = kKeyWarps * kRows * (kSumStride + 2);
  static constexpr int64_t kSharedBytes =
      std::max(int64_t{2} * kStages * kStageElements, int64_t{4} * kSumFloats);

  static_assert(kKeysPerWarp % 16 == 0, "tiles are made of m16n8k16");
  static_assert(kKeys % 32 == 0, "each lane finds the place of every 32nd key");
  static_assert(kStages >= 3, "two tiles on their way while one is used");
  static_assert(kRows * kHeadDim <= kStageElements, "q arrives through the last stage");
  static_assert(kSharedBytes <= 99 * 1024, "sm_86 and sm_89 give a block 99 KB");
  static_assert(kBlocks * (kSharedBytes + 1024) <= 164 * 1024, "an A100 multiprocessor has 164 KB");
};

// kWide: more than sixteen rows.
//
//   head_dim  rows  warps       keys × stages  shared  in flight  blocks on an A100 multiprocessor
//         64    16  4 of keys       64 × 4      64 KB     48 KB   2
//         64    64  4 of rows       64 × 4      64 KB     48 KB   2
//        128    16  2 of keys       32 × 4      64 KB     48 KB   2
//        128    64  4 of rows       32 × 4      64 KB     48 KB   2
//        256    16  2 of keys       32 × 3      96 KB     64 KB   1
//        256    32  2 of each       32 × 3      96 KB     64 KB   1
//
// A row takes as many registers of its warp at head_dim 256 as two at 128: with 32 keys a warp too,
// which 64 rows would ask for, nvcc spills.
//
// With few rows the warps share out the keys: each then reads what it needs of a tile once from
// shared memory, and two or four chains of product, softmax and product run beside each other.
// Softcap and ALiBi are branches of the same kernel, whose registers and instructions suffice.
template <int kHeadDim, bool kWide>
struct DecodeTileOf;
template <>
struct DecodeTileOf<64, false> {
  using type = DecodeTile<64, 1, 4, 64, 4, 2>;
};
template <>
struct DecodeTileOf<64, true> {
  using type = DecodeTile<64, 4, 1, 64, 4, 2>;
};
template <>
struct DecodeTileOf<128, false> {
  using type = DecodeTile<128, 1, 2, 32, 4, 2>;
};
template <>
struct DecodeTileOf<128, true> {
  using type = DecodeTile<128, 4, 1, 32, 4, 2>;
};
template <>
struct DecodeTileOf<256, false> {
  using type = DecodeTile<256, 1, 2, 32, 3, 1>;
};
template <>
struct DecodeTileOf<256, true> {
  using type = DecodeTile<256, 2, 2, 32, 3, 1>;
};

constexpr int kNarrowRows = 16;

// Rows of a key head: all its query heads' tokens.
inline int64_t rows_of_key_head(const AttentionDecode& params) {
  return int64_t{params.heads / params.kv_heads} * params.tokens;
}

inline int64_t row_blocks_of(const AttentionDecode& params, int rows_of_block) {
  return std::max<int64_t>(1, (rows_of_key_head(params) + rows_of_block - 1) / rows_of_block);
}

// Fewer keys are not worth a block's start and the combining of its part.
constexpr int kLeastTilesOfSplit = 2;
// More would make one block's share of a long sequence a large part of a batch's whole time.
constexpr int64_t kMostKeysOfSplit = 4096;
constexpr int64_t kMostSplits = 128;

// Parts for `units` (sequence, key head, row block) of up to `capacity` keys on a GPU that runs
// `slots` blocks at a time: the fewest that keep the slots nearly as busy, over all waves of
// blocks, as any number does.
inline int choose_splits(int64_t units, int64_t capacity, int64_t keys_of_tile, int64_t slots,
                         bool one_row_block) {
  const int64_t most =
      std::clamp<int64_t>(capacity / (kLeastTilesOfSplit * keys_of_tile), 1, kMostSplits);
  // With several row blocks there are blocks enough, and parts would be large.
  const int64_t least =
      one_row_block ? std::min(most, (capacity + kMostKeysOfSplit - 1) / kMostKeysOfSplit) : 1;
  const auto busy = [&](int64_t splits) {
    const int64_t waves = (units * splits + slots - 1) / slots;
    return static_cast<double>(units * splits) / static_cast<double>(waves * slots);
  };
  constexpr double kNearly = 0.85;
  double best = 0.0;
  for (int64_t splits = std::max<int64_t>(1, least); splits <= most; ++splits) {
    best = std::max(best, busy(splits));
  }
  int64_t splits = std::max<int64_t>(1, least);
  while (busy(splits) < kNearly * best) ++splits;
  return static_cast<int>(splits);
}

// Which tiles of a row block's `tiles` a part works on, [first, end); the first parts have work.
struct TileRange {
  int first;
  int end;
};

constexpr TileRange tiles_of_split(int tiles, int splits, int split) {
  const int even = (tiles + splits - 1) / splits;
  const int count = even > kLeastTilesOfSplit ? even : kLeastTilesOfSplit;
  const int64_t first = int64_t{split} * count;
  return {static_cast<int>(first < tiles ? first : tiles),
          static_cast<int>(first + count < tiles ? first + count : tiles)};
}

// Rows (batch, head, token) of out and lse.
inline int64_t decode_rows_of(const AttentionDecode& params) {
  return int64_t{params.batch} * params.heads * params.tokens;
}

}  // namespace llmjp::attention
