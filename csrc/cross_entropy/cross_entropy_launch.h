// The launchers by element type of the logits. Each is one generated translation unit
// (CMakeLists.txt holds the table); cross_entropy.cpp picks among them.
#pragma once

#include "cross_entropy/cross_entropy.h"
#include "host/stream.h"

namespace llmjp::device {
struct float16;
struct bfloat16;
}  // namespace llmjp::device

namespace llmjp::cross_entropy {

template <class X>
void launch_cross_entropy_forward(const CrossEntropyForward& params, host::Stream stream);

template <class X>
void launch_cross_entropy_backward(const CrossEntropyBackward& params, host::Stream stream);

}  // namespace llmjp::cross_entropy
