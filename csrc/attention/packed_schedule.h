// In which order blocks work on packed sequences. Host-side and torch-free.
#pragma once

#include <cstdint>

namespace llmjp::attention {

// The rows of packed q, or of packed k and v, fall into batch + 2 spans: those before the first
// sequence, the sequences, and those behind the last. Each row belongs to one span, so whoever
// writes all spans leaves nothing unwritten.
constexpr int64_t span_count(int64_t batch) { return batch + 2; }

// No fewer tiles than all spans together need, known without their lengths. A span's tiles may be
// numbered from first row / rows_of_tile + number of the span on, where they meet no other's.
constexpr int64_t packed_tiles(int64_t rows, int64_t batch, int rows_of_tile) {
  return rows / rows_of_tile + span_count(batch);
}

// A span of q and of k, with only rows that exist.
struct alignas(16) Span {
  int32_t tokens;
  int32_t keys;
  int32_t first_token;
  int32_t first_key;
};

// Sequences of similar length share a bucket, and so much of the order is left to chance.
constexpr int kLengthBuckets = 256;

// The order: sequences from the longest to the shortest, so that a GPU that ends with short blocks
// idles less; in a sequence sections of heads one after another, whose rows stay in the
// second-level cache together; in a section the tiles as in a batch of equal sequences (tiles.h).
//
// kByKeys: tiles of queries, which take as long as their sequence has keys; else tiles of keys.
template <bool kByKeys>
struct PackedSchedule {
  const int32_t* first_tiles;  // [spans + 1], how many tiles come before a span, in the order
  const int32_t* order;        // [spans], which span that is
  const Span* spans;           // [spans], in the order of their rows
  int span_count;
  int cached_rows;    // of one head, or of the heads that share keys, so many fit the cache
  int section_heads;  // and this many heads those are
};

// Scratch memory, in integers: the spans, first_tiles, order, and a counter for each bucket.
constexpr int64_t packed_schedule_workspace(int64_t batch) {
  return (sizeof(Span) / sizeof(int32_t) + 2) * span_count(batch) + 1 + kLengthBuckets;
}

}  // namespace llmjp::attention
