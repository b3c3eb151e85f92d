// Activation ops: checks, outputs, and the launch.
#include "bindings/activation_operands.h"

#include <string>
#include <tuple>

#include "activation/bias_dropout_add.h"
#include "bindings/device_scope.h"
#include "bindings/dropping.h"
#include "bindings/library.h"
#include "bindings/tensor_checks.h"

namespace llmjp::bindings {
namespace {

using activation::BiasDropoutAddBackward;
using activation::BiasDropoutAddForward;
Tensor bias_gelu_fwd(const Tensor& x, const std::optional<Tensor>& bias, std::string approximate) {
  const DeviceScope scope(x);
  return bias_gelu_forward(x, bias, approximate, [&](const BiasGeluForward& params) {
    activation::bias_gelu_forward(params, scope.stream());
  });
}

std::tuple<Tensor, Tensor> bias_gelu_bwd(const Tensor& dy, const Tensor& x,
                                         const std::optional<Tensor>& bias,
                                         std::string approximate) {
  const DeviceScope scope(x);
  return bias_gelu_backward(dy, x, bias, approximate, [&](BiasGeluBackward& params) {
    const Tensor workspace =
        new_vector(x, activation::bias_gelu_backward_workspace(params), ScalarType::Float);
    params.workspace = static_cast<float*>(workspace.mutable_data_ptr());
    activation::bias_gelu_backward(params, scope.stream());
  });
}

// The type of dbias: the bias' own, or else the one that kernels exist for beside these rows.
host::DType bias_type_of(const Bias& bias, host::DType x_type, host::DType row_type) {
  return bias.tensor || x_type == row_type ? bias.type : host::DType::kFloat32;
}

void check_add_types(host::DType x, host::DType row, host::DType bias, const char* op) {
  using host::DType;
  const bool half = x != DType::kFloat32;
  const bool supported =
      (x == row && row == bias) || (half && bias == DType::kFloat32 && (row == x || row == bias));
  check(supported, op, ": the dtypes of x, residual and bias are ", host::name(x), ", ",
        host::name(row), " and ", host::name(bias),
        "; supported are one dtype for all, float16 or bfloat16 with a float32 bias, and the same "
        "with a float32 residual too.");
}

// Where no column is special and dropout's positions run on from one row to the next.
bool may_join(const std::optional<Tensor>& bias, const Dropping& dropping, int64_t width) {
  return !bias && (!dropping.random_state || width % 4 == 0);
}

Tensor bias_dropout_add_fwd(const Tensor& x, const std::optional<Tensor>& bias_in,
                            const Tensor& residual, const std::optional<Tensor>& random_state,
                            double dropout_p) {
  constexpr const char* op = "bias_dropout_add_fwd";
  const DeviceScope scope(x);
  BiasDropoutAddForward params{};
  params.x_type = dtype_of(x, op, "x");
  params.row_type = dtype_of(residual, op, "residual");
  check_tensor(residual, x.sizes(), x, op, "residual");
  const Rows x_rows = rows_of(x, op, "x");
  const Rows residual_rows = rows_of(residual, op, "residual");
  const Bias bias(bias_in, x_rows, params.x_type, op);
  const Dropping dropping(random_state, dropout_p, x, op);
  params.bias_type = bias_type_of(bias, params.x_type, params.row_type);
  check_add_types(params.x_type, params.row_type, params.bias_type, op);
  Tensor r = new_tensor(residual, x.sizes());
  params.x = x_rows.data();
  params.bias = bias.data();
  params.residual = residual_rows.data();
  params.random = dropping.data();
  params.dropout = dropping.share;
  params.r = r.mutable_data_ptr();
  params.rows = x_rows.rows;
  params.width = x_rows.width;
  params.x_stride = x_rows.stride;
  params.residual_stride = residual_rows.stride;
  if (may_join(bias.tensor, dropping, params.width)) {
    join_rows(params.rows, params.width, {&params.x_stride, &params.residual_stride});
  }
  activation::bias_dropout_add_forward(params, scope.stream());
  return r;
}

std::tuple<Tensor, Tensor> bias_dropout_add_bwd(const Tensor& dr,
                                                const std::optional<Tensor>& bias_in,
                                                const std::optional<Tensor>& random_state,
                                                double dropout_p, ScalarType x_dtype) {
  constexpr const char* op = "bias_dropout_add_bwd";
  const DeviceScope scope(dr);
  BiasDropoutAddBackward params{};
  params.x_type = dtype_of(x_dtype, op, "x");
  params.row_type = dtype_of(dr, op, "dr");
  const Rows dr_rows = rows_of(dr, op, "dr");
  const Bias bias(bias_in, dr_rows, params.x_type, op);
  const Dropping dropping(random_state, dropout_p, dr, op);
  params.bias_type = bias_type_of(bias, params.x_type, params.row_type);
  check_add_types(params.x_type, params.row_type, params.bias_type, op);
  const bool has_dx = random_state || params.x_type != params.row_type;
  Tensor dx = has_dx ? new_tensor(dr, dr.sizes(), x_dtype) : new_vector(dr, 0, x_dtype);
  const Tensor& like = bias_in ? *bias_in : dr;
  const ScalarType dbias_type = bias_in ? like.scalar_type() : ScalarType::Float;
  if (dr_rows.rows == 0 || dr_rows.width == 0 || !(has_dx || bias_in)) {
    return {dx, new_zero_vector(like, bias_in ? dr_rows.width : 0, dbias_type)};
  }
  Tensor dbias = new_vector(like, bias_in ? dr_rows.width : 0, dbias_type);
  params.dr = dr_rows.data();
  params.random = dropping.data();
  params.dropout = dropping.share;
  params.dx = has_dx ? dx.mutable_data_ptr() : nullptr;
  params.dbias = bias_in ? dbias.mutable_data_ptr() : nullptr;
  params.rows = dr_rows.rows;
  params.width = dr_rows.width;
  params.dr_stride = dr_rows.stride;
  if (may_join(bias.tensor, dropping, params.width)) {
    join_rows(params.rows, params.width, {&params.dr_stride});
  }
  const Tensor workspace =
      new_vector(dr, activation::bias_dropout_add_backward_workspace(params), ScalarType::Float);
  params.workspace = static_cast<float*>(workspace.mutable_data_ptr());
  activation::bias_dropout_add_backward(params, scope.stream());
  return {dx, dbias};
}

Tensor swiglu_fwd(const Tensor& gate, const Tensor& up) {
  const DeviceScope scope(gate);
  return swiglu_forward(gate, up, [&](const SwigluForward& params) {
    activation::swiglu_forward(params, scope.stream());
  });
}

std::tuple<Tensor, Tensor> swiglu_bwd(const Tensor& dy, const Tensor& gate, const Tensor& up) {
  const DeviceScope scope(gate);
  return swiglu_backward(dy, gate, up, [&](const SwigluBackward& params) {
    activation::swiglu_backward(params, scope.stream());
  });
}

}  // namespace
}  // namespace llmjp::bindings

LLMJP_LIBRARY_IMPL(LLMJP_NAMESPACE, LLMJP_DISPATCH_KEY, library) {
  library.impl("bias_dropout_add_fwd", TORCH_BOX(&llmjp::bindings::bias_dropout_add_fwd));
  library.impl("bias_dropout_add_bwd", TORCH_BOX(&llmjp::bindings::bias_dropout_add_bwd));
  library.impl("bias_gelu_fwd", TORCH_BOX(&llmjp::bindings::bias_gelu_fwd));
  library.impl("bias_gelu_bwd", TORCH_BOX(&llmjp::bindings::bias_gelu_bwd));
  library.impl("swiglu_fwd", TORCH_BOX(&llmjp::bindings::swiglu_fwd));
  library.impl("swiglu_bwd", TORCH_BOX(&llmjp::bindings::swiglu_bwd));
}
