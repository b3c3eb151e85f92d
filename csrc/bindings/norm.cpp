// LayerNorm and RMSNorm ops: the launches.
#include <tuple>

#include "bindings/device_scope.h"
#include "bindings/library.h"
#include "bindings/norm_operands.h"

namespace llmjp::bindings {
namespace {

ForwardResult forward(const Tensor& x, const Tensor* residual, const Tensor& weight,
                      const std::optional<Tensor>& bias, const Dropping& dropping, double eps,
                      Kind kind, const char* op) {
  const DeviceScope scope(x);
  return norm_forward(
      x, residual, weight, bias, dropping, eps, kind, op,
      [&](const LayerNormForward& params) { norm::layer_norm_forward(params, scope.stream()); });
}

Gradients backward(const Tensor& dy, const std::optional<Tensor>& dr, const Tensor& r,
                   const Tensor& weight, const Tensor* mean, const Tensor& rstd,
                   const std::optional<Tensor>& random_state, double dropout_p, bool has_bias,
                   const char* op) {
  const DeviceScope scope(r);
  return norm_backward(dy, dr, r, weight, mean, rstd, random_state, dropout_p, has_bias, op,
                       [&](LayerNormBackward& params) {
                         const Tensor workspace = new_vector(
                             r, norm::layer_norm_backward_workspace(params), ScalarType::Float);
                         params.workspace = static_cast<float*>(workspace.mutable_data_ptr());
                         norm::layer_norm_backward(params, scope.stream());
                       });
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_fwd(const Tensor& x, const Tensor& weight,
                                                  const std::optional<Tensor>& bias, double eps) {
  ForwardResult result =
      forward(x, nullptr, weight, bias, {}, eps, Kind::kLayerNorm, "layer_norm_fwd");
  return {result.y, result.mean, result.rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm_fwd(
    const Tensor& x, const Tensor& residual, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& random_state, double eps,
    double dropout_p) {
  constexpr const char* op = "add_layer_norm_fwd";
  const Dropping dropping(random_state, dropout_p, x, op);
  ForwardResult result = forward(x, &residual, weight, bias, dropping, eps, Kind::kLayerNorm, op);
  return {result.y, result.r, result.mean, result.rstd};
}

std::tuple<Tensor, Tensor> rms_norm_fwd(const Tensor& x, const Tensor& weight, double eps) {
  ForwardResult result =
      forward(x, nullptr, weight, std::nullopt, {}, eps, Kind::kRmsNorm, "rms_norm_fwd");
  return {result.y, result.rstd};
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm_fwd(const Tensor& x, const Tensor& residual,
                                                    const Tensor& weight,
                                                    const std::optional<Tensor>& random_state,
                                                    double eps, double dropout_p) {
  constexpr const char* op = "add_rms_norm_fwd";
  const Dropping dropping(random_state, dropout_p, x, op);
  ForwardResult result =
      forward(x, &residual, weight, std::nullopt, dropping, eps, Kind::kRmsNorm, op);
  return {result.y, result.r, result.rstd};
}

Gradients layer_norm_bwd(const Tensor& dy, const std::optional<Tensor>& dr, const Tensor& r,
                         const Tensor& weight, const Tensor& mean, const Tensor& rstd,
                         const std::optional<Tensor>& random_state, double dropout_p,
                         bool has_bias) {
  return backward(dy, dr, r, weight, &mean, rstd, random_state, dropout_p, has_bias,
                  "layer_norm_bwd");
}

std::tuple<Tensor, Tensor, Tensor> rms_norm_bwd(const Tensor& dy, const std::optional<Tensor>& dr,
                                                const Tensor& r, const Tensor& weight,
                                                const Tensor& rstd,
                                                const std::optional<Tensor>& random_state,
                                                double dropout_p) {
  const auto [dr_sum, dx, dweight, dbias] =
      backward(dy, dr, r, weight, nullptr, rstd, random_state, dropout_p, false, "rms_norm_bwd");
  return {dr_sum, dx, dweight};
}

}  // namespace
}  // namespace llmjp::bindings

LLMJP_LIBRARY_IMPL(LLMJP_NAMESPACE, LLMJP_DISPATCH_KEY, library) {
  library.impl("layer_norm_fwd", TORCH_BOX(&llmjp::bindings::layer_norm_fwd));
  library.impl("add_layer_norm_fwd", TORCH_BOX(&llmjp::bindings::add_layer_norm_fwd));
  library.impl("layer_norm_bwd", TORCH_BOX(&llmjp::bindings::layer_norm_bwd));
  library.impl("rms_norm_fwd", TORCH_BOX(&llmjp::bindings::rms_norm_fwd));
  library.impl("add_rms_norm_fwd", TORCH_BOX(&llmjp::bindings::add_rms_norm_fwd));
  library.impl("rms_norm_bwd", TORCH_BOX(&llmjp::bindings::rms_norm_bwd));
}
