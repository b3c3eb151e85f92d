// What the order of attention's blocks is worth: a GPU is played by places that take the next block
// as soon as they are free, each block costing what its rows see of the keys. The time lost at the
// end, when places have nothing left to take, is less than half of what the reverse order loses.
#include <algorithm>
#include <functional>
#include <queue>
#include <set>
#include <vector>

#include "attention/backward_tiles.h"
#include "attention/tiles.h"
#include "tests/check.h"

namespace {

using namespace llmjp;
using attention::BlockPlace;
using attention::Schedule;

struct Run {
  double longest;  // until the last block ends
  double least;    // all work over all places: no order ends earlier
};

// Block after block to the place that is free first.
Run play(int places, int64_t blocks, const std::function<double(int64_t)>& cost) {
  std::priority_queue<double, std::vector<double>, std::greater<>> free;
  for (int i = 0; i < places; ++i) free.push(0.0);
  Run run{0.0, 0.0};
  for (int64_t block = 0; block < blocks; ++block) {
    const double end = free.top() + cost(block);
    free.pop();
    free.push(end);
    run.longest = std::max(run.longest, end);
    run.least += cost(block) / places;
  }
  return run;
}

// Multiprocessors of an A100, with two blocks each in forward.
constexpr int kForwardPlaces = 2 * 108;

TEST(causal_forward_blocks_end_together) {
  for (const int tokens : {2048, 4096, 8192, 16384}) {
    const int batch = 16384 / tokens, heads = 16;
    const Schedule order = attention::schedule(tokens, tokens, batch, heads, heads, 128, 128);
    // A block of 128 rows sees the keys up to its last, and takes one tile's time to begin and end.
    const auto cost = [&](int64_t block) {
      return attention::block_place(order, static_cast<int>(block)).row_block + 2.0;
    };
    const auto shortest_first = [&](int64_t block) {
      return order.row_blocks - 1 -
             attention::block_place(order, static_cast<int>(block)).row_block + 2.0;
    };
    const Run ours = play(kForwardPlaces, order.blocks(), cost);
    const Run other = play(kForwardPlaces, order.blocks(), shortest_first);
    CHECK(2 * (ours.longest - ours.least) < other.longest - other.least);
  }
}

TEST(causal_backward_blocks_end_together) {
  for (const int tokens : {4096, 8192, 16384}) {
    const int batch = 16384 / tokens, heads = 16;
    const Schedule order =
        attention::backward_schedule(tokens, tokens, batch, heads, heads, 128, 128);
    // The first keys, which are the last row block's, are seen by most queries.
    const auto cost = [&](int64_t block) {
      return attention::block_place(order, static_cast<int>(block)).row_block + 2.0;
    };
    const auto shortest_first = [&](int64_t block) {
      return order.row_blocks - 1 -
             attention::block_place(order, static_cast<int>(block)).row_block + 2.0;
    };
    const Run ours = play(108, order.blocks(), cost);
    const Run other = play(108, order.blocks(), shortest_first);
    CHECK(2 * (ours.longest - ours.least) < other.longest - other.least);
  }
}

// Of the blocks at work at one time, how many bytes of keys and values they read.
TEST(blocks_at_work_share_keys_that_fit_the_second_level_cache) {
  for (const auto& [tokens, heads, kv_heads, head_dim] :
       {std::tuple{16384, 32, 32, 64}, std::tuple{16384, 16, 16, 128}, std::tuple{8192, 64, 8, 128},
        std::tuple{2048, 40, 40, 128}}) {
    const Schedule order = attention::schedule(tokens, tokens, 4, heads, kv_heads, head_dim, 128);
    const int64_t bytes_of_head = int64_t{4} * tokens * head_dim;
    const int64_t section =
        std::max<int64_t>(1, order.heads_per_section * kv_heads / heads) * bytes_of_head;
    CHECK(section <= std::max(attention::kCachedKeyBytes, bytes_of_head));
    for (int64_t first = 0; first + kForwardPlaces <= order.blocks(); first += kForwardPlaces) {
      std::set<int> kv;
      for (int64_t block = first; block < first + kForwardPlaces; ++block) {
        kv.insert(attention::block_place(order, static_cast<int>(block)).head / (heads / kv_heads));
      }
      // Blocks at the seam of two sections read both; no more where a section has enough blocks.
      const int64_t sections =
          2 + kForwardPlaces / (int64_t{order.heads_per_section} * order.row_blocks);
      CHECK(static_cast<int64_t>(kv.size()) * bytes_of_head <= sections * section);
    }
  }
}

}  // namespace
