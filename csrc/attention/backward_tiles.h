// How attention's backward pass is cut into tiles, in which order they run, and where its scratch
// memory lies. Host-side and torch-free.
#pragma once

#include <cstdint>

#include "attention/tiles.h"

namespace llmjp::attention {

// Queries that a block of the backward pass takes at a time: 64, as a row of the swizzled tile that
// holds dsᵀ has 64 elements.
constexpr int kBackwardQueries = 64;

// A block keeps kKeys keys of one key head and walks over the queries that see them. The scores are
// computed transposed, keys by queries, kChunk queries at a time. kColumnWarps warps share keys:
// each computes the scores of its part of the queries, and its part of dk's and dv's columns.
template <int kHeadDimension, int kKeyCount, int kWarpCount, int kSharingWarps, int kChunkSize,
          int kStageCount, int kBlockCount>
struct BackwardTile {
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr int kQueries = kBackwardQueries;
  static constexpr int kKeys = kKeyCount;
  static constexpr int kWarps = kWarpCount;
  static constexpr int kColumnWarps = kSharingWarps;
  static constexpr int kChunk = kChunkSize;
  static constexpr int kStages = kStageCount;  // buffers of queries
  static constexpr int kBlocks = kBlockCount;  // that share a multiprocessor
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kKeysPerWarp = kKeys * kColumnWarps / kWarps;
  static constexpr int kColumnsPerWarp = kHeadDim / kColumnWarps;  // of dk and dv
  static constexpr int kQueriesPerWarp = kQueries / kColumnWarps;  // of the scores
  // P stays in registers unless several warps need it.
  static constexpr bool kSharesP = kColumnWarps > 1;
  // dq of the tile is cut into pieces of 32 queries.
  static constexpr int kDqWarps = kWarps / 2;  // along head_dim
  static constexpr int kDqColumns = kHeadDim / kDqWarps;
  static constexpr int kDqPart = kDqColumns < 32 ? kDqColumns : 32;  // at a time
  // lse and delta of the queries of one stage, in floats.
  static constexpr int kStatistics = 2 * kQueries;
  static constexpr int64_t kSharedBytes =
      int64_t{2} * (2 * kKeys * kHeadDim + kStages * 2 * kQueries * kHeadDim +
                    (kSharesP ? 2 : 1) * kKeys * kQueries) +
      kStages * kStatistics * 4;
  // fp32 accumulators a thread: dk and dv, and of a chunk the scores and dout · vᵀ, or dq.
  static constexpr int kScoreAccumulators = 2 * kKeysPerWarp * kChunk / 32;
  static constexpr int kDqAccumulators = kDqPart;
  static constexpr int kAccumulators =
      2 * kKeysPerWarp * kColumnsPerWarp / 32 +
      (kScoreAccumulators > kDqAccumulators ? kScoreAccumulators : kDqAccumulators);

  static_assert(kKeysPerWarp % 16 == 0 && kChunk % 16 == 0 && kDqPart % 16 == 0 &&
                    kColumnsPerWarp % 16 == 0,
                "tiles are made of m16n8k16, whose operands are loaded in pairs");
  static_assert(kWarps <= 8, "a turn for each warp");
  static_assert(kQueriesPerWarp % kChunk == 0, "chunks divide a warp's queries");
  static_assert(!kSharesP || kStages == 1, "one buffer of queries where P is shared");
  static_assert(kBlocks * (kSharedBytes + 1024) <= 164 * 1024, "an A100 multiprocessor has 164 KB");
  static_assert(kAccumulators <= 192, "255 registers leave about 60 for everything else");
};

// The tile of a head dimension; kGeneral with softcap, ALiBi or dropout.
//
// dk and dv take 128 registers a thread whatever the tile: 255 registers then allow 32 × 64, 16 ×
// 128, or, with two warps sharing 16 keys, 16 × 256 of each. The more keys a block keeps, the fewer
// times dq crosses to the second-level cache: 128 keys move 4 bytes for 1,280 operations.
//
//   head_dim  tile (keys × queries)  shared  blocks  registers beside dk and dv
//         64   128 × 64, 4 w          81 KB       2  32 + 32: 32 queries at a time
//        128   128 × 64, 8 w         145 KB       1  32 + 32: 64 queries at a time
//        256    64 × 64, 8 w         145 KB       1  16 + 16; P and ds go through shared memory
//
// Two buffers let the next queries arrive during a whole step; where they do not fit (256), the one
// buffer is filled during dq. The general kernel needs registers for its formulas and takes half as
// many queries at a time.
template <int kHeadDim, bool kGeneral>
struct BackwardTileOf;
template <bool kGeneral>
struct BackwardTileOf<64, kGeneral> {
  using type = BackwardTile<64, 128, 4, 1, kGeneral ? 16 : 32, 2, 2>;
};
template <bool kGeneral>
struct BackwardTileOf<128, kGeneral> {
  using type = BackwardTile<128, 128, 8, 1, kGeneral ? 32 : 64, 2, 1>;
};
template <bool kGeneral>
struct BackwardTileOf<256, kGeneral> {
  using type = BackwardTile<256, 64, 8, 2, 32, 1, 1>;
};

// What the launcher works out for all blocks: elements from one copied piece of a thread to its
// next, and how many heads share a key head.
struct BackwardSteps {
  int64_t q;
  int64_t k;
  int64_t v;
  int64_t dout;
  int group;
};

// The order of the blocks, each a tile of keys of one key head. Under a causal mask the first keys
// are seen by most queries, so they come first; and first is also who may add to dq first where the
// order of the sums is fixed. Queries, dout and the float32 sums of dq of a section's heads stay in
// the second-level cache together.
inline Schedule backward_schedule(int64_t tokens, int64_t keys, int64_t batch, int64_t heads,
                                  int64_t kv_heads, int64_t head_dim, int keys_of_block) {
  const int64_t bytes_of_kv_head = std::max<int64_t>(1, 8 * tokens * head_dim * (heads / kv_heads));
  Schedule result{};
  result.row_blocks = static_cast<int>((keys + keys_of_block - 1) / keys_of_block);
  result.head_count = static_cast<int>(batch * kv_heads);
  result.heads_per_section = static_cast<int>(
      std::clamp<int64_t>(kCachedKeyBytes / bytes_of_kv_head, 1, result.head_count));
  return result;
}

// The scratch memory, in floats: a record for each tile of 64 queries of each head, numbered
// (batch index · heads + head) · tiles of a head + tile, all in lines of 128 bytes.
template <int kHeadDim>
struct BackwardScratch {
  static constexpr int kLine = 32;
  // First of all: how many blocks have started.
  static constexpr int kStarted = 0;
  static constexpr int kFirstRecord = kLine;
  // dq before it is scaled: blocks of 16 rows × 8 columns in the order in which the lanes of a warp
  // hold them as accumulators, so that 32 lanes add to 128 neighbouring bytes.
  static constexpr int kSums = kBackwardQueries * kHeadDim;
  // lse as an exponent of 2, then delta. Queries beyond the last have lse +infinity, and so P = 0.
  static constexpr int kStatistics = 2 * kBackwardQueries;
  // How many blocks have added their part of dq, a counter for each of their warps.
  static constexpr int kTurns = 8;
  static constexpr int kRecord = kSums + kStatistics + kLine;

  static constexpr int64_t floats(int64_t tiles) { return kFirstRecord + tiles * kRecord; }
};

}  // namespace llmjp::attention
