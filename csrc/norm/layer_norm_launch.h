// The launchers by element type: X of input and output, R of the row that is normalised, W of
// weight and bias. Each combination is one generated translation unit (CMakeLists.txt holds the
// table); layer_norm.cpp picks among them.
#pragma once

#include "host/stream.h"
#include "norm/layer_norm.h"

namespace llmjp::norm {

template <class X, class R, class W>
void launch_layer_norm_forward(const LayerNormForward& params, host::Stream stream);

template <class X, class R, class W>
void launch_layer_norm_backward(const LayerNormBackward& params, host::Stream stream);

}  // namespace llmjp::norm
