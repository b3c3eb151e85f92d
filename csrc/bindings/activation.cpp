// Activation ops: checks, outputs, and the launch.
#include <initializer_list>
#include <string>
#include <tuple>

#include "activation/bias_dropout_add.h"
#include "activation/bias_gelu.h"
#include "activation/swiglu.h"
#include "bindings/device_scope.h"
#include "bindings/dropping.h"
#include "bindings/library.h"
#include "bindings/tensor_checks.h"

namespace llmjp::bindings {
namespace {

using activation::BiasDropoutAddBackward;
using activation::BiasDropoutAddForward;
using activation::BiasGeluBackward;
using activation::BiasGeluForward;
using activation::SwigluBackward;
using activation::SwigluForward;

bool is_tanh(const std::string& approximate, const char* op) {
  check(approximate == "none" || approximate == "tanh", op,
        ": approximate must be 'none' or 'tanh', got '", approximate, "'.");
  return approximate == "tanh";
}

// The bias once it is known to fit rows of this width.
struct Bias {
  std::optional<Tensor> tensor;
  host::DType type;

  Bias(const std::optional<Tensor>& bias, const Rows& rows, host::DType x_type, const char* op)
      : type(x_type) {
    if (!bias) return;
    check_vector(*bias, rows.width, rows.tensor, op, "bias");
    type = dtype_of(*bias, op, "bias");
    check(type == x_type || type == host::DType::kFloat32, op, ": bias must be ",
          host::name(x_type), " (as x) or float32, got ", host::name(type), ".");
    tensor = as_array(*bias);
  }

  const void* data() const { return tensor ? tensor->const_data_ptr() : nullptr; }
};

// Where no column is special, rows that lie one behind the other are one long row, which wastes no
// lane at its end however short they were.
void join_rows(int64_t& rows, int64_t& width, std::initializer_list<int64_t*> strides) {
  for (const int64_t* stride : strides) {
    if (*stride != width && rows != 1) return;
  }
  width *= rows;
  rows = 1;
  for (int64_t* stride : strides) *stride = width;
}

Tensor bias_gelu_fwd(const Tensor& x, const std::optional<Tensor>& bias_in,
                     std::string approximate) {
  constexpr const char* op = "bias_gelu_fwd";
  const DeviceScope scope(x);
  BiasGeluForward params{};
  params.tanh = is_tanh(approximate, op);
  params.x_type = dtype_of(x, op, "x");
  const Rows x_rows = rows_of(x, op, "x");
  const Bias bias(bias_in, x_rows, params.x_type, op);
  Tensor y = torch::stable::new_empty(x, x.sizes());
  params.x = x_rows.data();
  params.bias = bias.data();
  params.y = y.mutable_data_ptr();
  params.rows = x_rows.rows;
  params.width = x_rows.width;
  params.x_stride = x_rows.stride;
  params.bias_type = bias.type;
  if (!bias.tensor) join_rows(params.rows, params.width, {&params.x_stride});
  activation::bias_gelu_forward(params, scope.stream());
  return y;
}

std::tuple<Tensor, Tensor> bias_gelu_bwd(const Tensor& dy, const Tensor& x,
                                         const std::optional<Tensor>& bias_in,
                                         std::string approximate) {
  constexpr const char* op = "bias_gelu_bwd";
  const DeviceScope scope(x);
  BiasGeluBackward params{};
  params.tanh = is_tanh(approximate, op);
  params.x_type = dtype_of(x, op, "x");
  check_tensor(dy, x.sizes(), x, op, "dy");
  check_dtype(dy, params.x_type, op, "dy");
  const Rows x_rows = rows_of(x, op, "x");
  const Rows dy_rows = rows_of(dy, op, "dy");
  const Bias bias(bias_in, x_rows, params.x_type, op);
  Tensor dx = torch::stable::new_empty(x, x.sizes());
  const Tensor& like = bias_in ? *bias_in : x;
  const int64_t bias_length = bias_in ? x_rows.width : 0;
  if (x_rows.rows == 0 || x_rows.width == 0) {
    return {dx, new_zero_vector(like, bias_length, like.scalar_type())};
  }
  Tensor dbias = new_vector(like, bias_length, like.scalar_type());
  params.dy = dy_rows.data();
  params.x = x_rows.data();
  params.bias = bias.data();
  params.dx = dx.mutable_data_ptr();
  params.dbias = bias.tensor ? dbias.mutable_data_ptr() : nullptr;
  params.rows = x_rows.rows;
  params.width = x_rows.width;
  params.dy_stride = dy_rows.stride;
  params.x_stride = x_rows.stride;
  params.bias_type = bias.type;
  if (!bias.tensor) join_rows(params.rows, params.width, {&params.dy_stride, &params.x_stride});
  const Tensor workspace =
      new_vector(x, activation::bias_gelu_backward_workspace(params), ScalarType::Float);
  params.workspace = static_cast<float*>(workspace.mutable_data_ptr());
  activation::bias_gelu_backward(params, scope.stream());
  return {dx, dbias};
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
  Tensor r = torch::stable::new_empty(residual, x.sizes());
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
  Tensor dx =
      has_dx ? torch::stable::new_empty(dr, dr.sizes(), x_dtype) : new_vector(dr, 0, x_dtype);
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
  constexpr const char* op = "swiglu_fwd";
  const DeviceScope scope(gate);
  SwigluForward params{};
  params.type = dtype_of(gate, op, "gate");
  check_tensor(up, gate.sizes(), gate, op, "up");
  check_dtype(up, params.type, op, "up");
  const Rows gate_rows = rows_of(gate, op, "gate");
  const Rows up_rows = rows_of(up, op, "up");
  Tensor y = torch::stable::new_empty(gate, gate.sizes());
  params.gate = gate_rows.data();
  params.up = up_rows.data();
  params.y = y.mutable_data_ptr();
  params.rows = gate_rows.rows;
  params.width = gate_rows.width;
  params.gate_stride = gate_rows.stride;
  params.up_stride = up_rows.stride;
  join_rows(params.rows, params.width, {&params.gate_stride, &params.up_stride});
  activation::swiglu_forward(params, scope.stream());
  return y;
}

std::tuple<Tensor, Tensor> swiglu_bwd(const Tensor& dy, const Tensor& gate, const Tensor& up) {
  constexpr const char* op = "swiglu_bwd";
  const DeviceScope scope(gate);
  SwigluBackward params{};
  params.type = dtype_of(gate, op, "gate");
  check_tensor(up, gate.sizes(), gate, op, "up");
  check_dtype(up, params.type, op, "up");
  check_tensor(dy, gate.sizes(), gate, op, "dy");
  check_dtype(dy, params.type, op, "dy");
  const Rows dy_rows = rows_of(dy, op, "dy");
  const Rows gate_rows = rows_of(gate, op, "gate");
  const Rows up_rows = rows_of(up, op, "up");
  Tensor dgate = torch::stable::new_empty(gate, gate.sizes());
  Tensor dup = torch::stable::new_empty(gate, gate.sizes());
  params.dy = dy_rows.data();
  params.gate = gate_rows.data();
  params.up = up_rows.data();
  params.dgate = dgate.mutable_data_ptr();
  params.dup = dup.mutable_data_ptr();
  params.rows = gate_rows.rows;
  params.width = gate_rows.width;
  params.dy_stride = dy_rows.stride;
  params.gate_stride = gate_rows.stride;
  params.up_stride = up_rows.stride;
  join_rows(params.rows, params.width, {&params.dy_stride, &params.gate_stride, &params.up_stride});
  activation::swiglu_backward(params, scope.stream());
  return {dgate, dup};
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
