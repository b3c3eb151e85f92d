// LayerNorm and RMSNorm ops: the launches.
#include "bindings/device_scope.h"
#include "bindings/norm_ops.h"

namespace llmjp::bindings {
namespace {

struct OnDevice {
  static void forward(LayerNormForward& params, const Tensor& x) {
    const DeviceScope scope(x);
    norm::layer_norm_forward(params, scope.stream());
  }

  static void backward(LayerNormBackward& params, const Tensor& r) {
    const DeviceScope scope(r);
    const Tensor workspace =
        new_vector(r, norm::layer_norm_backward_workspace(params), ScalarType::Float);
    params.workspace = static_cast<float*>(workspace.mutable_data_ptr());
    norm::layer_norm_backward(params, scope.stream());
  }
};

}  // namespace
}  // namespace llmjp::bindings

LLMJP_LIBRARY_IMPL(LLMJP_NAMESPACE, LLMJP_DISPATCH_KEY, library) {
  llmjp::bindings::NormOps<llmjp::bindings::OnDevice>::register_in(library);
}
