// The norm ops over any launcher: the CUDA kernels, or the native code of CPU tensors.
#pragma once

#include <tuple>

#include "bindings/library.h"
#include "bindings/norm_operands.h"

namespace llmjp::bindings {

// Launch has two static functions, forward(params, x) and backward(params, r); the tensor is one of
// the call's.
template <class Launch>
class NormOps {
 public:
  static std::tuple<Tensor, Tensor, Tensor> layer_norm_fwd(const Tensor& x, const Tensor& weight,
                                                           const std::optional<Tensor>& bias,
                                                           double eps) {
    const ForwardResult result =
        forward(x, nullptr, weight, bias, {}, eps, Kind::kLayerNorm, "layer_norm_fwd");
    return {result.y, result.mean, result.rstd};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm_fwd(
      const Tensor& x, const Tensor& residual, const Tensor& weight,
      const std::optional<Tensor>& bias, const std::optional<Tensor>& random_state, double eps,
      double dropout_p) {
    constexpr const char* op = "add_layer_norm_fwd";
    const Dropping dropping(random_state, dropout_p, x, op);
    const ForwardResult result =
        forward(x, &residual, weight, bias, dropping, eps, Kind::kLayerNorm, op);
    return {result.y, result.r, result.mean, result.rstd};
  }

  static std::tuple<Tensor, Tensor> rms_norm_fwd(const Tensor& x, const Tensor& weight,
                                                 double eps) {
    const ForwardResult result =
        forward(x, nullptr, weight, std::nullopt, {}, eps, Kind::kRmsNorm, "rms_norm_fwd");
    return {result.y, result.rstd};
  }

  static std::tuple<Tensor, Tensor, Tensor> add_rms_norm_fwd(
      const Tensor& x, const Tensor& residual, const Tensor& weight,
      const std::optional<Tensor>& random_state, double eps, double dropout_p) {
    constexpr const char* op = "add_rms_norm_fwd";
    const Dropping dropping(random_state, dropout_p, x, op);
    const ForwardResult result =
        forward(x, &residual, weight, std::nullopt, dropping, eps, Kind::kRmsNorm, op);
    return {result.y, result.r, result.rstd};
  }

  static Gradients layer_norm_bwd(const Tensor& dy, const std::optional<Tensor>& dr,
                                  const Tensor& r, const Tensor& weight, const Tensor& mean,
                                  const Tensor& rstd, const std::optional<Tensor>& random_state,
                                  double dropout_p, bool has_bias) {
    return backward(dy, dr, r, weight, &mean, rstd, random_state, dropout_p, has_bias,
                    "layer_norm_bwd");
  }

  static std::tuple<Tensor, Tensor, Tensor> rms_norm_bwd(
      const Tensor& dy, const std::optional<Tensor>& dr, const Tensor& r, const Tensor& weight,
      const Tensor& rstd, const std::optional<Tensor>& random_state, double dropout_p) {
    const auto [dr_sum, dx, dweight, dbias] =
        backward(dy, dr, r, weight, nullptr, rstd, random_state, dropout_p, false, "rms_norm_bwd");
    return {dr_sum, dx, dweight};
  }

  template <class Library>
  static void register_in(Library& library) {
    library.impl("layer_norm_fwd", TORCH_BOX(&NormOps::layer_norm_fwd));
    library.impl("add_layer_norm_fwd", TORCH_BOX(&NormOps::add_layer_norm_fwd));
    library.impl("layer_norm_bwd", TORCH_BOX(&NormOps::layer_norm_bwd));
    library.impl("rms_norm_fwd", TORCH_BOX(&NormOps::rms_norm_fwd));
    library.impl("add_rms_norm_fwd", TORCH_BOX(&NormOps::add_rms_norm_fwd));
    library.impl("rms_norm_bwd", TORCH_BOX(&NormOps::rms_norm_bwd));
  }

 private:
  static ForwardResult forward(const Tensor& x, const Tensor* residual, const Tensor& weight,
                               const std::optional<Tensor>& bias, const Dropping& dropping,
                               double eps, Kind kind, const char* op) {
    return norm_forward(x, residual, weight, bias, dropping, eps, kind, op,
                        [&](LayerNormForward& params) { Launch::forward(params, x); });
  }

  static Gradients backward(const Tensor& dy, const std::optional<Tensor>& dr, const Tensor& r,
                            const Tensor& weight, const Tensor* mean, const Tensor& rstd,
                            const std::optional<Tensor>& random_state, double dropout_p,
                            bool has_bias, const char* op) {
    return norm_backward(dy, dr, r, weight, mean, rstd, random_state, dropout_p, has_bias, op,
                         [&](LayerNormBackward& params) { Launch::backward(params, r); });
  }
};

}  // namespace llmjp::bindings
