// bias_gelu on the CPU: formulas and parameters of bias_gelu.h. The caller shares the work over its
// threads, and gives a bias as fp32.
#pragma once

#include <cstdint>

#include "activation/bias_gelu.h"

namespace llmjp::activation {

// Columns [first, last) of a row.
void bias_gelu_forward_columns(const BiasGeluForward& params, int64_t row, int64_t first,
                               int64_t last);

// Likewise; the gradients are also added to `sums` [width] unless that is null.
void bias_gelu_backward_columns(const BiasGeluBackward& params, int64_t row, int64_t first,
                                int64_t last, float* sums);

}  // namespace llmjp::activation
