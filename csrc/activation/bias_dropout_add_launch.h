// The launchers by element type: X of the input, R of the residual stream, B of the bias. Each
// first type is one generated translation unit (CMakeLists.txt holds the table);
// bias_dropout_add.cpp picks among them.
#pragma once

#include "activation/bias_dropout_add.h"
#include "host/stream.h"

namespace llmjp::device {
struct float16;
struct bfloat16;
}  // namespace llmjp::device

namespace llmjp::activation {

template <class X, class R, class B>
void launch_bias_dropout_add_forward(const BiasDropoutAddForward& params, host::Stream stream);

template <class X, class R, class B>
void launch_bias_dropout_add_backward(const BiasDropoutAddBackward& params, host::Stream stream);

}  // namespace llmjp::activation
