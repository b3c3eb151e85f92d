// Launches of the decode kernels for one tile and element type.
#pragma once

#include <algorithm>
#include <limits>

#include "attention/attention_decode.cuh"
#include "attention/attention_decode_combine.cuh"
#include "attention/attention_decode_launch.h"
#include "attention/decode_tiles.h"
#include "device/dtype.h"
#include "host/launch.h"

namespace llmjp::attention {

template <class T, class Tile>
void launch_attention_decode_tile(AttentionDecode params, host::Stream stream) {
  // The scale is folded into the exponent, where it must not turn the order of the scores round.
  params.has_formulas = params.softcap > 0.0f || params.alibi != nullptr ||
                        !(params.scale >= std::numeric_limits<float>::min());
  params.exponent_scale = params.has_formulas ? kLog2E : params.scale * kLog2E;
  // Without heads there are no rows, but there may be new keys to append.
  if (params.heads == 0) params.tokens = 0;
  params.group = std::max(1, params.heads / params.kv_heads);
  params.row_blocks = static_cast<int>(row_blocks_of(params, Tile::kRows));
  const int64_t blocks =
      int64_t{params.row_blocks} * params.kv_heads * params.splits * params.batch;
  host::launch("attention_decode", attention_decode_kernel<T, Tile>,
               {blocks, Tile::kThreads, Tile::kSharedBytes, stream}, params);
}

template <int kHeadDim, class T>
void launch_attention_decode(const AttentionDecode& params, host::Stream stream) {
  if (rows_of_key_head(params) <= kNarrowRows) {
    launch_attention_decode_tile<T, typename DecodeTileOf<kHeadDim, false>::type>(params, stream);
  } else {
    launch_attention_decode_tile<T, typename DecodeTileOf<kHeadDim, true>::type>(params, stream);
  }
  const int64_t rows = decode_rows_of(params);
  if (params.splits > 1 && rows > 0) {
    host::launch("attention_decode_combine", attention_decode_combine_kernel<T>,
                 {(rows + kCombineWarps - 1) / kCombineWarps, 32 * kCombineWarps, 0, stream},
                 params);
  }
}

}  // namespace llmjp::attention
