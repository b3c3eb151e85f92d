// The order of work over packed sequences (packed_schedule.h), from lengths that only the GPU
// knows.
#pragma once

#include "attention/attention.h"
#include "attention/packed_schedule.h"
#include "device/atomic.h"
#include "device/scan.h"
#include "device/thread.h"
#include "device/vector.h"

namespace llmjp::attention {

constexpr int kPackedOrderThreads = kLengthBuckets;
constexpr int64_t kPackedOrderSharedBytes = kPackedOrderThreads / device::kWarpSize * sizeof(int);

struct PackedOrder {
  const int32_t* cu_seqlens_q;
  const int32_t* cu_seqlens_k;
  Span* spans;
  int32_t* first_tiles;
  int32_t* order;
  int32_t* counters;  // [kLengthBuckets]
  int batch;
  int tokens;
  int keys;
  int rows_of_bucket;
};

// First row of a span. Lengths that make no sense lead to a wrong result, never to rows that do not
// exist.
LLMJP_DEVICE int span_begin(const int32_t* cu_seqlens, int batch, int rows, int span) {
  if (span == 0) return 0;
  if (span > batch + 1) return rows;
  const int begin = cu_seqlens[span - 1];
  return begin < 0 ? 0 : begin < rows ? begin : rows;
}

LLMJP_DEVICE Span bounds_of(const PackedOrder& p, int span) {
  const int token = span_begin(p.cu_seqlens_q, p.batch, p.tokens, span);
  const int end_token = span_begin(p.cu_seqlens_q, p.batch, p.tokens, span + 1);
  const int key = span_begin(p.cu_seqlens_k, p.batch, p.keys, span);
  const int end_key = span_begin(p.cu_seqlens_k, p.batch, p.keys, span + 1);
  return {end_token > token ? end_token - token : 0, end_key > key ? end_key - key : 0, token, key};
}

// One block sorts all spans by bucket, those of a bucket as they come: whatever their order,
// sequences know nothing of each other.
template <int kRowsOfTile, bool kByKeys>
LLMJP_KERNEL LLMJP_LAUNCH_BOUNDS(kPackedOrderThreads, 1)
    attention_packed_order_kernel(PackedOrder p) {
  constexpr int kWarps = kPackedOrderThreads / device::kWarpSize;
  int* const scratch = device::dynamic_shared<int>();
  const int spans = p.batch + 2;
  const int thread = device::thread_index();
  // A tile takes as long as its sequence has rows on the other side; rows of no sequence take none.
  const auto counter = [&](int place, const Span& span) {
    const bool apart = place == 0 || place == spans - 1;
    const int bucket = (apart ? 0 : kByKeys ? span.keys : span.tokens) / p.rows_of_bucket;
    return p.counters + (bucket < kLengthBuckets ? kLengthBuckets - 1 - bucket : 0);
  };
  p.counters[thread] = 0;
  device::sync_threads();
  for (int place = thread; place < spans; place += kPackedOrderThreads) {
    const Span span = bounds_of(p, place);
    device::store(p.spans + place, span);
    device::atomic_add(counter(place, span), 1);
  }
  device::sync_threads();
  p.counters[thread] = device::block_running_sum<kWarps>(p.counters[thread], scratch).before;
  device::sync_threads();
  for (int place = thread; place < spans; place += kPackedOrderThreads) {
    p.order[device::atomic_add(counter(place, p.spans[place]), 1)] = place;
  }
  device::sync_threads();
  int tiles_before = 0;
  for (int first = 0; first < spans; first += kPackedOrderThreads) {
    const int place = first + thread;
    int tiles = 0;
    if (place < spans) {
      const Span span = p.spans[p.order[place]];
      tiles = ((kByKeys ? span.tokens : span.keys) + kRowsOfTile - 1) / kRowsOfTile;
    }
    const auto sum = device::block_running_sum<kWarps>(tiles, scratch);
    if (place < spans) p.first_tiles[place] = tiles_before + sum.before;
    tiles_before += sum.total;
  }
  if (thread == 0) p.first_tiles[spans] = tiles_before;
}

}  // namespace llmjp::attention
