// Activation ops of CPU tensors, over torch's threads.
#include <string>
#include <tuple>

#include "activation/bias_gelu_cpu.h"
#include "activation/swiglu_cpu.h"
#include "bindings/activation_operands.h"
#include "bindings/cpu_rows.h"
#include "bindings/library.h"

namespace llmjp::bindings {
namespace {

// A bias of x's type, which the native code takes as float32.
std::optional<Tensor> in_float32(const std::optional<Tensor>& bias, const Tensor& x) {
  if (!bias || bias->scalar_type() == ScalarType::Float) return bias;
  if (bias->scalar_type() != x.scalar_type()) return bias;
  return torch::stable::to(*bias, ScalarType::Float);
}

Tensor bias_gelu_fwd(const Tensor& x, const std::optional<Tensor>& bias, std::string approximate) {
  return bias_gelu_forward(x, in_float32(bias, x), approximate, [](const BiasGeluForward& params) {
    for_columns(params.rows, params.width, [&](int64_t row, int64_t first, int64_t last) {
      activation::bias_gelu_forward_columns(params, row, first, last);
    });
  });
}

std::tuple<Tensor, Tensor> bias_gelu_bwd(const Tensor& dy, const Tensor& x,
                                         const std::optional<Tensor>& bias,
                                         std::string approximate) {
  const auto run = [](const BiasGeluBackward& params) {
    if (params.dbias == nullptr) {
      for_columns(params.rows, params.width, [&](int64_t row, int64_t first, int64_t last) {
        activation::bias_gelu_backward_columns(params, row, first, last, nullptr);
      });
      return;
    }
    for_row_groups(params.rows, params.width, static_cast<float*>(params.dbias),
                   [&](int64_t first, int64_t last, float* sums) {
                     for (int64_t row = first; row < last; ++row)
                       activation::bias_gelu_backward_columns(params, row, 0, params.width, sums);
                   });
  };
  const auto [dx, dbias] = bias_gelu_backward(dy, x, in_float32(bias, x), approximate, run);
  if (!bias || bias->scalar_type() == ScalarType::Float) return {dx, dbias};
  return {dx, torch::stable::to(dbias, bias->scalar_type())};
}

Tensor swiglu_fwd(const Tensor& gate, const Tensor& up) {
  return swiglu_forward(gate, up, [](const SwigluForward& params) {
    for_columns(params.rows, params.width, [&](int64_t row, int64_t first, int64_t last) {
      activation::swiglu_forward_columns(params, row, first, last);
    });
  });
}

std::tuple<Tensor, Tensor> swiglu_bwd(const Tensor& dy, const Tensor& gate, const Tensor& up) {
  return swiglu_backward(dy, gate, up, [](const SwigluBackward& params) {
    for_columns(params.rows, params.width, [&](int64_t row, int64_t first, int64_t last) {
      activation::swiglu_backward_columns(params, row, first, last);
    });
  });
}

}  // namespace
}  // namespace llmjp::bindings

LLMJP_LIBRARY_IMPL(LLMJP_NAMESPACE, CPU, library) {
  library.impl("bias_gelu_fwd", TORCH_BOX(&llmjp::bindings::bias_gelu_fwd));
  library.impl("bias_gelu_bwd", TORCH_BOX(&llmjp::bindings::bias_gelu_bwd));
  library.impl("swiglu_fwd", TORCH_BOX(&llmjp::bindings::swiglu_fwd));
  library.impl("swiglu_bwd", TORCH_BOX(&llmjp::bindings::swiglu_bwd));
}
