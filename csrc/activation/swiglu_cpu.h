// swiglu on the CPU: formulas and parameters of swiglu.h, columns [first, last) of a row. The
// caller shares them over its threads.
#pragma once

#include <cstdint>

#include "activation/swiglu.h"

namespace llmjp::activation {

void swiglu_forward_columns(const SwigluForward& params, int64_t row, int64_t first, int64_t last);

void swiglu_backward_columns(const SwigluBackward& params, int64_t row, int64_t first,
                             int64_t last);

}  // namespace llmjp::activation
