// How attention is cut into tiles, and in which order the tiles run. Host-side and torch-free.
#pragma once

#include <algorithm>
#include <cstdint>

namespace llmjp::attention {

// A block takes kRows queries of one head and walks over its keys kKeys at a time; each of its
// warps owns kRows / kWarps queries, so that no softmax crosses warps.
template <int kHeadDimension, int kRowCount, int kKeyCount, int kWarpCount, int kBlockCount>
struct ForwardTile {
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr int kRows = kRowCount;
  static constexpr int kKeys = kKeyCount;
  static constexpr int kWarps = kWarpCount;
  static constexpr int kBlocks = kBlockCount;  // that share a multiprocessor
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRowsPerWarp = kRows / kWarps;
  // q, one tile of k and one of v, two bytes an element.
  static constexpr int64_t kSharedBytes = int64_t{2} * kHeadDim * (kRows + 2 * kKeys);
  // fp32 accumulators a thread: of out and of the scores.
  static constexpr int kAccumulators = kRowsPerWarp * (kHeadDim + kKeys) / 32;

  static_assert(kRowsPerWarp % 16 == 0 && kKeys % 16 == 0, "tiles are made of m16n8k16");
  static_assert(kSharedBytes <= 99 * 1024, "sm_86 and sm_89 give a block 99 KB");
  static_assert(kBlocks * (kSharedBytes + 1024) <= 164 * 1024, "an A100 multiprocessor has 164 KB");
  static_assert(kAccumulators <= 192, "255 registers leave about 60 for everything else");
};

// The tile of a head dimension; kGeneral with softcap, ALiBi or dropout.
//
// A warp should own 32 queries: with 16 each 16-byte row that ldmatrix reads feeds half as many
// products, and shared memory (128 bytes a cycle) is as busy as the tensor cores; with 32 it is
// half as busy. Two blocks of four warps a multiprocessor cover each other's softmax and barriers,
// which takes at most 255 registers a thread and 81 KB a block.
//
//   head_dim  tile           shared  blocks  accumulators
//         64  128 ×  96, 4 w  40 KB       2  64 + 96: with 128 keys nvcc spills
//        128  128 ×  64, 4 w  64 KB       2  128 + 64
//        256  128 ×  32, 8 w  96 KB       1  128 + 16: a warp owns 16 queries, since 32 would need
//                                            256 registers for out alone
//
// The general kernel needs registers for its formulas and takes fewer keys at a time.
template <int kHeadDim, bool kGeneral>
struct TileOf;
template <>
struct TileOf<64, false> {
  using type = ForwardTile<64, 128, 96, 4, 2>;
};
template <>
struct TileOf<64, true> {
  using type = ForwardTile<64, 128, 64, 4, 2>;
};
template <>
struct TileOf<128, false> {
  using type = ForwardTile<128, 128, 64, 4, 2>;
};
template <>
struct TileOf<128, true> {
  using type = ForwardTile<128, 128, 32, 4, 2>;
};
template <bool kGeneral>
struct TileOf<256, kGeneral> {
  using type = ForwardTile<256, 128, 32, 8, 1>;
};

// Rows that a block's threads copy at once, 16 bytes each.
constexpr int rows_of_pass(int threads, int columns) { return threads / (columns / 8); }

// Elements from one pass of a copy to the next, and from one tile to the next. Given to the kernel
// as numbers of their own: from the token's stride the compiler would multiply each row's offset
// out again.
struct CopySteps {
  int64_t q;
  int64_t k;
  int64_t v;
  int64_t k_tile;
  int64_t v_tile;
};

// The order of the blocks: sections of heads one after another, in a section the last rows of all
// its heads first. Under a causal mask the last rows see most keys, and a GPU that ends with short
// blocks idles less.
struct Schedule {
  int row_blocks;         // of one head
  int head_count;         // batch · heads
  int heads_per_section;  // whose keys and values stay in the second-level cache together
  int64_t blocks() const { return int64_t{row_blocks} * head_count; }
};

// A100: 40 MB of second-level cache in two halves of which each keeps its own copy; a little is
// left for q and out on their way through.
constexpr int64_t kCachedKeyBytes = int64_t{16} << 20;

inline Schedule schedule(int64_t tokens, int64_t keys, int64_t batch, int64_t heads,
                         int64_t kv_heads, int64_t head_dim, int rows_of_block) {
  const int64_t bytes_of_kv_head = std::max<int64_t>(1, 2 * 2 * keys * head_dim);
  const int64_t kv_heads_cached = std::max<int64_t>(1, kCachedKeyBytes / bytes_of_kv_head);
  const int64_t cached = kv_heads_cached * (heads / kv_heads);
  Schedule result{};
  result.row_blocks = static_cast<int>((tokens + rows_of_block - 1) / rows_of_block);
  result.head_count = static_cast<int>(batch * heads);
  result.heads_per_section = static_cast<int>(std::min<int64_t>(cached, result.head_count));
  return result;
}

// What the block of an index works on.
struct BlockPlace {
  int head;  // batch index · heads + head
  int row_block;
};

constexpr BlockPlace block_place(const Schedule& schedule, int index) {
  const int section_blocks = schedule.heads_per_section * schedule.row_blocks;
  const int section = index / section_blocks;
  const int first_head = section * schedule.heads_per_section;
  const int left = schedule.head_count - first_head;
  const int heads = left < schedule.heads_per_section ? left : schedule.heads_per_section;
  const int place = index - section * section_blocks;
  return {first_head + place % heads, schedule.row_blocks - 1 - place / heads};
}

}  // namespace llmjp::attention
