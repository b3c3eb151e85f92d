#include "rotary/rotary.h"

#include <string>

#include "host/error.h"
#include "host/visit_types.h"
#include "rotary/rotary_launch.h"

namespace llmjp::rotary {

void rotary_forward(const RotaryForward& p, host::Stream stream) {
  if (p.head_dim > kMostHeadDim) {
    throw host::Unsupported("rotary takes a head_dim of up to " + std::to_string(kMostHeadDim) +
                            ", got " + std::to_string(p.head_dim));
  }
  if (p.batch * p.tokens * (p.q.heads + p.k.heads) * p.head_dim == 0) return;
  if (p.pairs == 0 && p.in_place) return;
  const bool known = host::visit_types(
      host::TensorAndParameter{}, std::array{p.type, p.angle_type},
      [&]<class T, class Angle>() { launch_rotary_forward<T, Angle>(p, stream); });
  if (known) return;
  throw host::Unsupported(std::string("rotary takes cos and sin of the type of q or float32; ") +
                          "got " + name(p.type) + " and " + name(p.angle_type));
}

}  // namespace llmjp::rotary
