// Launches of the attention forward kernel for one tile and element type.
#pragma once

#include <type_traits>

#include "attention/attention_forward.cuh"
#include "attention/attention_launch.h"
#include "attention/packed_order_launch.cuh"
#include "attention/tiles.h"
#include "device/dtype.h"
#include "host/launch.h"

namespace llmjp::attention {

template <int kHeadDim, class T, bool kGeneral>
void launch_attention_forward_tile(const AttentionForward& params, host::Stream stream) {
  using Tile = typename TileOf<kHeadDim, kGeneral>::type;
  constexpr int64_t kPass = rows_of_pass(Tile::kThreads, kHeadDim);
  const CopySteps steps{kPass * params.q_strides.token, kPass * params.k_strides.token,
                        kPass * params.v_strides.token,
                        int64_t{Tile::kKeys} * params.k_strides.token,
                        int64_t{Tile::kKeys} * params.v_strides.token};
  AttentionForward scaled = params;
  scaled.exponent_scale = kGeneral ? kLog2E : params.scale * kLog2E;
  const auto run = [&](const auto& order, int64_t blocks) {
    using Order = std::remove_cvref_t<decltype(order)>;
    host::launch("attention_forward", attention_forward_kernel<T, Tile, kGeneral, Order>,
                 {blocks, Tile::kThreads, Tile::kSharedBytes, stream}, scaled, order, steps);
  };
  if (is_packed(params)) {
    const auto order = order_packed_queries<Tile::kRows>(params, kHeadDim, stream);
    scaled.spans = order.spans;
    run(order, packed_tiles(params.tokens, params.batch, Tile::kRows) * params.heads);
  } else {
    const Schedule order = schedule(params.tokens, params.keys, params.batch, params.heads,
                                    params.kv_heads, kHeadDim, Tile::kRows);
    run(order, order.blocks());
  }
}

template <int kHeadDim, class T>
void launch_attention_forward(const AttentionForward& params, host::Stream stream) {
  if (is_general(params)) {
    launch_attention_forward_tile<kHeadDim, T, true>(params, stream);
  } else {
    launch_attention_forward_tile<kHeadDim, T, false>(params, stream);
  }
}

}  // namespace llmjp::attention
