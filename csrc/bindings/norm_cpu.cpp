// LayerNorm and RMSNorm ops of CPU tensors, over torch's threads. Dropout is bias_dropout_add's.
#include <algorithm>
#include <tuple>
#include <vector>

#include "bindings/bias_dropout_add_cpu.h"
#include "bindings/cpu_rows.h"
#include "bindings/library.h"
#include "bindings/norm_operands.h"
#include "norm/layer_norm_cpu.h"

namespace llmjp::bindings {
namespace {

Tensor converted(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

// A weight, or bias, of x's type as the native code takes it: float32. Others are checked as they
// are.
Tensor in_float32(const Tensor& vector, const Tensor& x) {
  return vector.scalar_type() == x.scalar_type() ? converted(vector, ScalarType::Float) : vector;
}

std::optional<Tensor> in_float32(const std::optional<Tensor>& vector, const Tensor& x) {
  if (!vector) return vector;
  return in_float32(*vector, x);
}

ForwardResult forward(const Tensor& x, const Tensor* residual, const Tensor& weight,
                      const std::optional<Tensor>& bias, double eps, Kind kind, const char* op) {
  const Tensor& rows = residual == nullptr ? x : *residual;
  return norm_forward(x, residual, in_float32(weight, rows), in_float32(bias, rows), {}, eps, kind,
                      op, [](const LayerNormForward& params) {
                        torch::stable::parallel_for(0, params.rows, rows_of_thread(params.width),
                                                    [&](int64_t first, int64_t last) {
                                                      norm::layer_norm_forward_rows(params, first,
                                                                                    last);
                                                    });
                      });
}

ForwardResult add_forward(const Tensor& x, const Tensor& residual, const Tensor& weight,
                          const std::optional<Tensor>& bias,
                          const std::optional<Tensor>& random_state, double eps, double dropout_p,
                          Kind kind, const char* op) {
  const Dropping dropping(random_state, dropout_p, x, op);
  if (!random_state) return forward(x, &residual, weight, bias, eps, kind, op);
  const Tensor r = bias_dropout_add_fwd_cpu(x, std::nullopt, residual, random_state, dropout_p);
  ForwardResult result = forward(r, nullptr, weight, bias, eps, kind, op);
  result.r = r;
  result.y = converted(result.y, x.scalar_type());
  return result;
}

Gradients backward(const Tensor& dy, const std::optional<Tensor>& dr, const Tensor& r,
                   const Tensor& weight, const Tensor* mean, const Tensor& rstd,
                   const std::optional<Tensor>& random_state, double dropout_p, bool has_bias,
                   const char* op) {
  const Dropping dropping(random_state, dropout_p, r, op);
  auto [dr_sum, dx, dweight, dbias] =
      norm_backward(dy, dr, r, in_float32(weight, r), mean, rstd, std::nullopt, 0.0, has_bias, op,
                    [](const LayerNormBackward& params) {
                      const int64_t width = params.width;
                      std::vector<float> sums(2 * width);
                      for_row_groups(params.rows, 2 * width, sums.data(),
                                     [&](int64_t first, int64_t last, float* partial) {
                                       norm::layer_norm_backward_rows(params, first, last, partial);
                                     });
                      std::copy_n(sums.data(), width, static_cast<float*>(params.dweight));
                      if (params.dbias != nullptr) {
                        std::copy_n(sums.data() + width, width, static_cast<float*>(params.dbias));
                      }
                    });
  if (random_state) {
    dx = std::get<0>(
        bias_dropout_add_bwd_cpu(dr_sum, std::nullopt, random_state, dropout_p, dy.scalar_type()));
  }
  return {dr_sum, dx, converted(dweight, weight.scalar_type()),
          converted(dbias, weight.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_fwd(const Tensor& x, const Tensor& weight,
                                                  const std::optional<Tensor>& bias, double eps) {
  ForwardResult result = forward(x, nullptr, weight, bias, eps, Kind::kLayerNorm, "layer_norm_fwd");
  return {result.y, result.mean, result.rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm_fwd(
    const Tensor& x, const Tensor& residual, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& random_state, double eps,
    double dropout_p) {
  ForwardResult result = add_forward(x, residual, weight, bias, random_state, eps, dropout_p,
                                     Kind::kLayerNorm, "add_layer_norm_fwd");
  return {result.y, result.r, result.mean, result.rstd};
}

std::tuple<Tensor, Tensor> rms_norm_fwd(const Tensor& x, const Tensor& weight, double eps) {
  ForwardResult result =
      forward(x, nullptr, weight, std::nullopt, eps, Kind::kRmsNorm, "rms_norm_fwd");
  return {result.y, result.rstd};
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm_fwd(const Tensor& x, const Tensor& residual,
                                                    const Tensor& weight,
                                                    const std::optional<Tensor>& random_state,
                                                    double eps, double dropout_p) {
  ForwardResult result = add_forward(x, residual, weight, std::nullopt, random_state, eps,
                                     dropout_p, Kind::kRmsNorm, "add_rms_norm_fwd");
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

LLMJP_LIBRARY_IMPL(LLMJP_NAMESPACE, CPU, library) {
  library.impl("layer_norm_fwd", TORCH_BOX(&llmjp::bindings::layer_norm_fwd));
  library.impl("add_layer_norm_fwd", TORCH_BOX(&llmjp::bindings::add_layer_norm_fwd));
  library.impl("layer_norm_bwd", TORCH_BOX(&llmjp::bindings::layer_norm_bwd));
  library.impl("rms_norm_fwd", TORCH_BOX(&llmjp::bindings::rms_norm_fwd));
  library.impl("add_rms_norm_fwd", TORCH_BOX(&llmjp::bindings::add_rms_norm_fwd));
  library.impl("rms_norm_bwd", TORCH_BOX(&llmjp::bindings::rms_norm_bwd));
}
