#include "attention/attention_decode.h"

#include <algorithm>
#include <type_traits>

#include "attention/attention_decode_launch.h"
#include "attention/decode_tiles.h"
#include "attention/switches.h"
#include "host/device_limits.h"

namespace llmjp::attention {

int attention_decode_splits(const AttentionDecode& params) {
  if (decode_rows_of(params) == 0) return 1;
  return with_tile(params.head_dim, [&](auto head_dim) {
    const auto choose = [&](auto tile) {
      using Tile = typename decltype(tile)::type;
      const host::DeviceLimits limits = host::device_limits();
      // The system keeps 1 KB of a multiprocessor's shared memory for each block.
      const int64_t blocks_at_once = std::max<int64_t>(
          1, limits.shared_bytes_per_multiprocessor / (Tile::kSharedBytes + 1024));
      const int64_t row_blocks = row_blocks_of(params, Tile::kRows);
      return choose_splits(row_blocks * params.kv_heads * params.batch, params.capacity(),
                           Tile::kKeys, limits.multiprocessors * blocks_at_once, row_blocks == 1);
    };
    return rows_of_key_head(params) <= kNarrowRows
               ? choose(std::type_identity<typename DecodeTileOf<head_dim, false>::type>())
               : choose(std::type_identity<typename DecodeTileOf<head_dim, true>::type>());
  });
}

int64_t attention_decode_workspace(const AttentionDecode& params) {
  return params.splits == 1 ? 0 : params.splits * decode_rows_of(params) * (params.head_dim + 2);
}

void attention_decode(const AttentionDecode& params, host::Stream stream) {
  if (params.batch == 0 || (params.tokens == 0 && params.fresh == 0)) return;
  with_tile(params.head_dim, [&](auto head_dim) {
    with_type(params.type, [&](auto element) {
      launch_attention_decode<head_dim, typename decltype(element)::type>(params, stream);
    });
  });
}

}  // namespace llmjp::attention
