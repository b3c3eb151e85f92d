#include "rotary/rotary.h"

#include <string>

#include "host/error.h"
#include "rotary/rotary_launch.h"

namespace llmjp::rotary {

using device::bfloat16;
using device::float16;
using host::DType;

void rotary_forward(const RotaryForward& p, host::Stream stream) {
  if (p.head_dim > kMostHeadDim) {
    throw host::Unsupported("rotary takes a head_dim of up to " + std::to_string(kMostHeadDim) +
                            ", got " + std::to_string(p.head_dim));
  }
  if (p.batch * p.tokens * (p.q.heads + p.k.heads) * p.head_dim == 0) return;
  if (p.pairs == 0 && p.in_place) return;
  const bool same = p.type == p.angle_type;
  if (!same && p.angle_type != DType::kFloat32) {
    throw host::Unsupported(std::string("rotary takes cos and sin of the type of q or float32; ") +
                            "got " + name(p.type) + " and " + name(p.angle_type));
  }
  switch (p.type) {
    case DType::kFloat32:
      return launch_rotary_forward<float, float>(p, stream);
    case DType::kFloat16:
      return same ? launch_rotary_forward<float16, float16>(p, stream)
                  : launch_rotary_forward<float16, float>(p, stream);
    case DType::kBFloat16:
      return same ? launch_rotary_forward<bfloat16, bfloat16>(p, stream)
                  : launch_rotary_forward<bfloat16, float>(p, stream);
  }
}

}  // namespace llmjp::rotary
