// The launchers by element type: T of queries and keys, A of the angles. Each first type is one
// generated translation unit (CMakeLists.txt holds the table); rotary.cpp picks among them.
#pragma once

#include "host/stream.h"
#include "rotary/rotary.h"

namespace llmjp::device {
struct float16;
struct bfloat16;
}  // namespace llmjp::device

namespace llmjp::rotary {

template <class T, class A>
void launch_rotary_forward(const RotaryForward& params, host::Stream stream);

}  // namespace llmjp::rotary
