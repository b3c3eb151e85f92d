// Launches of the kernel that puts packed sequences in order.
#pragma once

#include "attention/attention_packed_order.cuh"
#include "attention/tiles.h"
#include "host/launch.h"

namespace llmjp::attention {

// Fills `workspace`, packed_schedule_workspace() integers from a multiple of 16 bytes on.
template <int kRowsOfTile, bool kByKeys>
PackedSchedule<kByKeys> order_packed(const AttentionProblem& params, int64_t bytes_of_cached_row,
                                     int section_heads, int32_t* workspace, host::Stream stream) {
  const int64_t spans = span_count(params.batch);
  PackedOrder order{};
  order.cu_seqlens_q = params.cu_seqlens_q;
  order.cu_seqlens_k = params.cu_seqlens_k;
  order.spans = reinterpret_cast<Span*>(workspace);
  order.first_tiles = reinterpret_cast<int32_t*>(order.spans + spans);
  order.order = order.first_tiles + spans + 1;
  order.counters = order.order + spans;
  order.batch = params.batch;
  order.tokens = params.tokens;
  order.keys = params.keys;
  order.rows_of_bucket = (kByKeys ? params.longest_k : params.longest_q) / kLengthBuckets + 1;
  host::launch("attention_packed_order", attention_packed_order_kernel<kRowsOfTile, kByKeys>,
               {1, kPackedOrderThreads, kPackedOrderSharedBytes, stream}, order);
  PackedSchedule<kByKeys> schedule{};
  schedule.first_tiles = order.first_tiles;
  schedule.order = order.order;
  schedule.spans = order.spans;
  schedule.span_count = static_cast<int>(spans);
  schedule.cached_rows = static_cast<int>(kCachedKeyBytes / bytes_of_cached_row);
  schedule.section_heads = section_heads;
  return schedule;
}

// Tiles of queries; keys and values stay in the cache.
template <int kRowsOfTile>
PackedSchedule<true> order_packed_queries(const AttentionForward& params, int head_dim,
                                          host::Stream stream) {
  return order_packed<kRowsOfTile, true>(params, 2 * 2 * head_dim, params.heads / params.kv_heads,
                                         params.workspace, stream);
}

// Tiles of keys; queries, dout and the sums of dq stay in the cache.
template <int kRowsOfTile>
PackedSchedule<false> order_packed_keys(const AttentionBackward& params, int head_dim,
                                        int32_t* workspace, host::Stream stream) {
  const int64_t group = params.heads / params.kv_heads;
  return order_packed<kRowsOfTile, false>(params, 8 * head_dim * group, 1, workspace, stream);
}

}  // namespace llmjp::attention
