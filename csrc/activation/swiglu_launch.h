// The launchers by element type, each one generated translation unit (CMakeLists.txt holds the
// table); swiglu.cpp picks among them.
#pragma once

#include "activation/swiglu.h"
#include "host/stream.h"

namespace llmjp::device {
struct float16;
struct bfloat16;
}  // namespace llmjp::device

namespace llmjp::activation {

template <class T>
void launch_swiglu_forward(const SwigluForward& params, host::Stream stream);

template <class T>
void launch_swiglu_backward(const SwigluBackward& params, host::Stream stream);

}  // namespace llmjp::activation
