// Launches of attention's backward pass for one tile and element type.
#pragma once

#include "attention/attention_backward.cuh"
#include "attention/attention_backward_rows.cuh"
#include "attention/attention_launch.h"
#include "attention/backward_tiles.h"
#include "attention/packed_order_launch.cuh"
#include "device/dtype.h"
#include "host/launch.h"

namespace llmjp::attention {

// prepare, the main kernel in `order`, and finish.
template <int kHeadDim, class T, bool kGeneral, class Order>
void launch_attention_backward_in_order(const AttentionBackward& params, const Order& order,
                                        int64_t blocks, host::Stream stream) {
  using Tile = typename BackwardTileOf<kHeadDim, kGeneral>::type;
  constexpr bool kPacked = kIsPacked<Order>;
  constexpr int64_t kPass = rows_of_pass(Tile::kThreads, kHeadDim);
  const BackwardSteps steps{kPass * params.q_strides.token, kPass * params.k_strides.token,
                            kPass * params.v_strides.token, kPass * params.dout_strides.token,
                            params.heads / params.kv_heads};
  AttentionBackward scaled = params;
  scaled.exponent_scale = kGeneral ? kLog2E : params.scale * kLog2E;
  const host::LaunchConfig rows{backward_records(params), kBackwardRowsThreads, 0, stream};
  host::launch("attention_backward_prepare",
               attention_backward_prepare_kernel<T, kHeadDim, kPacked>, rows, params);
  host::launch("attention_backward", attention_backward_kernel<T, Tile, kGeneral, Order>,
               {blocks, Tile::kThreads, Tile::kSharedBytes, stream}, scaled, order, steps);
  host::launch("attention_backward_finish", attention_backward_finish_kernel<T, kHeadDim, kPacked>,
               rows, params);
}

template <int kHeadDim, class T, bool kGeneral>
void launch_attention_backward_tile(const AttentionBackward& params, host::Stream stream) {
  constexpr int kKeys = BackwardTileOf<kHeadDim, kGeneral>::type::kKeys;
  if (is_packed(params)) {
    auto* const workspace = reinterpret_cast<int32_t*>(
        params.workspace + BackwardScratch<kHeadDim>::floats(backward_records(params)));
    const auto order = order_packed_keys<kKeys>(params, kHeadDim, workspace, stream);
    AttentionBackward packed = params;
    packed.spans = order.spans;
    launch_attention_backward_in_order<kHeadDim, T, kGeneral>(
        packed, order, packed_tiles(params.keys, params.batch, kKeys) * params.kv_heads, stream);
  } else {
    const Schedule order = backward_schedule(params.tokens, params.keys, params.batch, params.heads,
                                             params.kv_heads, kHeadDim, kKeys);
    launch_attention_backward_in_order<kHeadDim, T, kGeneral>(params, order, order.blocks(),
                                                              stream);
  }
}

template <int kHeadDim, class T>
void launch_attention_backward(const AttentionBackward& params, host::Stream stream) {
  if (is_general(params)) {
    launch_attention_backward_tile<kHeadDim, T, true>(params, stream);
  } else {
    launch_attention_backward_tile<kHeadDim, T, false>(params, stream);
  }
}

}  // namespace llmjp::attention
