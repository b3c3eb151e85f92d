// rotary on the CPU: formulas and parameters of rotary.h, with angles of fp32, of some tokens,
// counted through all batches. The caller shares them over its threads.
#pragma once

#include <cstdint>

#include "rotary/rotary.h"

namespace llmjp::rotary {

void rotary_tokens(const RotaryForward& params, int64_t first, int64_t last);

}  // namespace llmjp::rotary
