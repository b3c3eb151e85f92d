// bias_dropout_add of CPU tensors, over torch's threads.
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "activation/bias_dropout_add_cpu.h"
#include "bindings/cpu_rows.h"
#include "bindings/dropping.h"
#include "bindings/library.h"
#include "bindings/tensor_checks.h"
#include "host/convert_cpu.h"

namespace llmjp::bindings {
namespace {

using activation::CpuBackward;
using activation::CpuForward;

// Whether the native code takes these types; of others float32 copies are made.
bool is_direct(host::DType x_type, host::DType row_type) {
  return x_type == row_type || row_type == host::DType::kFloat32;
}

Tensor in_float32(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Float ? tensor
                                                   : torch::stable::to(tensor, ScalarType::Float);
}

Tensor bias_dropout_add_fwd(const Tensor& x, const std::optional<Tensor>& bias,
                            const Tensor& residual, const std::optional<Tensor>& random_state,
                            double dropout_p) {
  constexpr const char* op = "bias_dropout_add_fwd";
  host::DType x_type = dtype_of(x, op, "x");
  host::DType row_type = dtype_of(residual, op, "residual");
  check_tensor(residual, x.sizes(), x, op, "residual");
  const Dropping dropping(random_state, dropout_p, x, op);
  const bool direct = is_direct(x_type, row_type);
  if (!direct) x_type = row_type = host::DType::kFloat32;
  const Rows x_rows = rows_of(direct ? x : in_float32(x), op, "x");
  const Rows residual_rows = rows_of(direct ? residual : in_float32(residual), op, "residual");
  std::optional<Tensor> bias_array;
  host::DType bias_type = host::DType::kFloat32;
  if (bias) {
    check_vector(*bias, x_rows.width, x, op, "bias");
    bias_type = dtype_of(*bias, op, "bias");
    bias_array = as_array(*bias);
  }
  Tensor r = new_tensor(residual_rows.tensor, x.sizes());
  if (x_rows.rows != 0 && x_rows.width != 0) {
    const host::FloatArray bias32(bias_array ? bias_array->const_data_ptr() : nullptr, bias_type,
                                  x_rows.width);
    const CpuForward params{.x = x_rows.data(),
                            .bias = bias32.data(),
                            .residual = residual_rows.data(),
                            .r = r.mutable_data_ptr(),
                            .width = x_rows.width,
                            .x_stride = x_rows.stride,
                            .residual_stride = residual_rows.stride,
                            .dropout = {dropping.data(), dropping.share},
                            .x_type = x_type,
                            .row_type = row_type};
    torch::stable::parallel_for(0, x_rows.rows, rows_of_thread(params.width),
                                [&](int64_t first, int64_t last) { params.run(first, last); });
  }
  return direct ? r : torch::stable::to(r, residual.scalar_type());
}

std::tuple<Tensor, Tensor> bias_dropout_add_bwd(const Tensor& dr, const std::optional<Tensor>& bias,
                                                const std::optional<Tensor>& random_state,
                                                double dropout_p, ScalarType x_dtype) {
  constexpr const char* op = "bias_dropout_add_bwd";
  host::DType x_type = dtype_of(x_dtype, op, "x");
  host::DType row_type = dtype_of(dr, op, "dr");
  const Dropping dropping(random_state, dropout_p, dr, op);
  const bool direct = is_direct(x_type, row_type);
  if (!direct) x_type = row_type = host::DType::kFloat32;
  const Rows rows = rows_of(direct ? dr : in_float32(dr), op, "dr");
  host::DType bias_type = host::DType::kFloat32;
  if (bias) {
    check_vector(*bias, rows.width, dr, op, "bias");
    bias_type = dtype_of(*bias, op, "bias");
  }
  const bool has_dx = random_state || x_dtype != dr.scalar_type();
  Tensor dx = has_dx ? new_tensor(dr, dr.sizes(), direct ? x_dtype : ScalarType::Float)
                     : new_vector(dr, 0, x_dtype);
  const bool is_empty = rows.rows == 0 || rows.width == 0;
  const Tensor& like = bias ? *bias : dr;
  const int64_t bias_length = bias ? rows.width : 0;
  Tensor dbias = is_empty ? new_zero_vector(like, bias_length, like.scalar_type())
                          : new_vector(like, bias_length, like.scalar_type());
  if (!is_empty && (has_dx || bias)) {
    const CpuBackward params{.dr = rows.data(),
                             .dx = has_dx ? dx.mutable_data_ptr() : nullptr,
                             .width = rows.width,
                             .dr_stride = rows.stride,
                             .dropout = {dropping.data(), dropping.share},
                             .x_type = x_type,
                             .row_type = row_type};
    std::vector<float> sums(bias_length);
    for_row_groups(
        rows.rows, rows.width, bias ? sums.data() : nullptr,
        [&](int64_t first, int64_t last, float* partial) { params.run(first, last, partial); });
    if (bias) host::store_floats(sums.data(), bias_length, bias_type, dbias.mutable_data_ptr());
  }
  if (has_dx && !direct) dx = torch::stable::to(dx, x_dtype);
  return {dx, dbias};
}

}  // namespace
}  // namespace llmjp::bindings

LLMJP_LIBRARY_IMPL(LLMJP_NAMESPACE, CPU, library) {
  library.impl("bias_dropout_add_fwd", TORCH_BOX(&llmjp::bindings::bias_dropout_add_fwd));
  library.impl("bias_dropout_add_bwd", TORCH_BOX(&llmjp::bindings::bias_dropout_add_bwd));
}
