// LayerNorm and RMSNorm on the CPU: formulas and parameters of layer_norm.h, with weight and bias
// as fp32, of rows [first, last). The caller shares rows over its threads.
#pragma once

#include <cstdint>

#include "norm/layer_norm.h"

namespace llmjp::norm {

void layer_norm_forward_rows(const LayerNormForward& params, int64_t first, int64_t last);

// These rows' share of dweight, and behind it where centred dbias', is added to `sums`.
void layer_norm_backward_rows(const LayerNormBackward& params, int64_t first, int64_t last,
                              float* sums);

}  // namespace llmjp::norm
