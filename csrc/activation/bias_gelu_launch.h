// The launchers by element type: X of input and output, B of the bias. Each first type is one
// generated translation unit (CMakeLists.txt holds the table); bias_gelu.cpp picks among them.
#pragma once

#include "activation/bias_gelu.h"
#include "host/stream.h"

namespace llmjp::activation {

template <class X, class B>
void launch_bias_gelu_forward(const BiasGeluForward& params, host::Stream stream);

template <class X, class B>
void launch_bias_gelu_backward(const BiasGeluBackward& params, host::Stream stream);

}  // namespace llmjp::activation
