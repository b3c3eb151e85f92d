// Rotary ops: the launch.
#include "bindings/device_scope.h"
#include "bindings/library.h"
#include "bindings/rotary_operands.h"

namespace llmjp::bindings {
namespace {

std::tuple<Tensor, Tensor> rotary_turned(const Tensor& q, const Tensor& k, const Tensor& cos,
                                         const Tensor& sin, bool interleaved, bool inverse) {
  const DeviceScope scope(q);
  return rotary_copied(q, k, cos, sin, interleaved, inverse, [&](const RotaryForward& params) {
    rotary::rotary_forward(params, scope.stream());
  });
}

void rotary_inplace(Tensor q, Tensor k, const Tensor& cos, const Tensor& sin, bool interleaved,
                    bool inverse) {
  const DeviceScope scope(q);
  rotary_overwritten(q, k, cos, sin, interleaved, inverse, [&](const RotaryForward& params) {
    rotary::rotary_forward(params, scope.stream());
  });
}

}  // namespace
}  // namespace llmjp::bindings

LLMJP_LIBRARY_IMPL(LLMJP_NAMESPACE, LLMJP_DISPATCH_KEY, library) {
  library.impl("rotary", TORCH_BOX(&llmjp::bindings::rotary_turned));
  library.impl("rotary_inplace", TORCH_BOX(&llmjp::bindings::rotary_inplace));
}
