// Cross-entropy on the CPU: formulas and parameters of cross_entropy.h, rows [first, last). Targets
// have been checked: each is a class or ignore_index. The caller shares rows over its threads.
#pragma once

#include <cstdint>

#include "cross_entropy/cross_entropy.h"

namespace llmjp::cross_entropy {

void cross_entropy_forward_rows(const CrossEntropyForward& params, int64_t first, int64_t last);

void cross_entropy_backward_rows(const CrossEntropyBackward& params, int64_t first, int64_t last);

}  // namespace llmjp::cross_entropy
