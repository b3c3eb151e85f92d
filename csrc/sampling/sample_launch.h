// The launcher by element type of the logits. Each is one generated translation unit
// (CMakeLists.txt holds the table); sample.cpp picks among them.
#pragma once

#include "host/stream.h"
#include "sampling/sample.h"

namespace llmjp::device {
struct float16;
struct bfloat16;
}  // namespace llmjp::device

namespace llmjp::sampling {

template <class X>
void launch_sample(const Sample& params, host::Stream stream);

}  // namespace llmjp::sampling
