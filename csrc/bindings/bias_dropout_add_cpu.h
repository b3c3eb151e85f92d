// bias_dropout_add of CPU tensors, which does the norms' dropout there too.
#pragma once

#include <tuple>

#include "bindings/tensor_checks.h"

namespace llmjp::bindings {

Tensor bias_dropout_add_fwd_cpu(const Tensor& x, const std::optional<Tensor>& bias,
                                const Tensor& residual, const std::optional<Tensor>& random_state,
                                double dropout_p);

std::tuple<Tensor, Tensor> bias_dropout_add_bwd_cpu(const Tensor& dr,
                                                    const std::optional<Tensor>& bias,
                                                    const std::optional<Tensor>& random_state,
                                                    double dropout_p, ScalarType x_dtype);

}  // namespace llmjp::bindings
