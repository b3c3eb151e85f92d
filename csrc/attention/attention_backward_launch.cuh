// Launches of attention's backward pass for one tile and element type.
#pragma once

#include "attention/attention_backward.cuh"
#include "attention/attention_backward_rows.cuh"
#include "attention/attention_launch.h"
#include "attention/backward_tiles.h"
#include "device/dtype.h"
#include "host/launch.h"

namespace llmjp::attention {

template <int kHeadDim, class T, bool kGeneral>
void launch_attention_backward_tile(const AttentionBackward& params, host::Stream stream) {
  using Tile = typename BackwardTileOf<kHeadDim, kGeneral>::type;
  const Schedule order = backward_schedule(params.tokens, params.keys, params.batch, params.heads,
                                           params.kv_heads, kHeadDim, Tile::kKeys);
  constexpr int64_t kPass = rows_of_pass(Tile::kThreads, kHeadDim);
  const BackwardSteps steps{kPass * params.q_strides.token, kPass * params.k_strides.token,
                            kPass * params.v_strides.token, kPass * params.dout_strides.token,
                            params.heads / params.kv_heads};
  AttentionBackward scaled = params;
  scaled.exponent_scale = kGeneral ? kLog2E : params.scale * kLog2E;
  host::launch("attention_backward", attention_backward_kernel<T, Tile, kGeneral>,
               {order.blocks(), Tile::kThreads, Tile::kSharedBytes, stream}, scaled, order, steps);
}

template <int kHeadDim, class T>
void launch_attention_backward(const AttentionBackward& params, host::Stream stream) {
  const host::LaunchConfig rows{(int64_t{params.tokens} + kBackwardQueries - 1) / kBackwardQueries *
                                    params.heads * params.batch,
                                kBackwardRowsThreads, 0, stream};
  host::launch("attention_backward_prepare", attention_backward_prepare_kernel<T, kHeadDim>, rows,
               params);
  if (is_general(params)) {
    launch_attention_backward_tile<kHeadDim, T, true>(params, stream);
  } else {
    launch_attention_backward_tile<kHeadDim, T, false>(params, stream);
  }
  host::launch("attention_backward_finish", attention_backward_finish_kernel<T, kHeadDim>, rows,
               params);
}

}  // namespace llmjp::attention
