// bias_dropout_add of CPU tensors, over torch's threads; float16 by way of float32.
#include "bindings/bias_dropout_add_cpu.h"

#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "activation/bias_dropout_add_cpu.h"
#include "bindings/cpu_rows.h"
#include "bindings/dropping.h"
#include "bindings/library.h"
#include "bindings/tensor_checks.h"

namespace llmjp::bindings {
namespace {

using activation::CpuBackward;
using activation::CpuDropout;
using activation::CpuForward;

Tensor in_float32(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Float ? tensor
                                                   : torch::stable::to(tensor, ScalarType::Float);
}

Tensor rounded(const Tensor& tensor, ScalarType type) {
  return type == ScalarType::Float ? tensor : torch::stable::to(tensor, type);
}

const float* floats(const void* data) { return static_cast<const float*>(data); }

CpuDropout dropout_of(const Dropping& dropping) {
  CpuDropout dropout{};
  if (const int64_t* random = dropping.data()) {
    dropout = {true, static_cast<uint64_t>(random[0]), static_cast<uint64_t>(random[1]),
               dropping.share};
  }
  return dropout;
}

}  // namespace

Tensor bias_dropout_add_fwd_cpu(const Tensor& x, const std::optional<Tensor>& bias,
                                const Tensor& residual, const std::optional<Tensor>& random_state,
                                double dropout_p) {
  constexpr const char* op = "bias_dropout_add_fwd";
  host::DType x_type = dtype_of(x, op, "x");
  host::DType row_type = dtype_of(residual, op, "residual");
  check_tensor(residual, x.sizes(), x, op, "residual");
  const Dropping dropping(random_state, dropout_p, x, op);
  const bool direct = activation::cpu_takes(x_type, row_type);
  if (!direct) x_type = row_type = host::DType::kFloat32;
  const Rows x_rows = rows_of(direct ? x : in_float32(x), op, "x");
  const Rows residual_rows = rows_of(direct ? residual : in_float32(residual), op, "residual");
  std::optional<Tensor> bias32;
  if (bias) {
    check_vector(*bias, x_rows.width, x, op, "bias");
    dtype_of(*bias, op, "bias");
    bias32 = as_array(in_float32(*bias));
  }
  Tensor r = new_tensor(residual_rows.tensor, x.sizes());
  if (x_rows.rows != 0 && x_rows.width != 0) {
    CpuForward params{};
    params.x = x_rows.data();
    params.bias = bias32 ? floats(bias32->const_data_ptr()) : nullptr;
    params.residual = residual_rows.data();
    params.r = r.mutable_data_ptr();
    params.width = x_rows.width;
    params.x_stride = x_rows.stride;
    params.residual_stride = residual_rows.stride;
    params.dropout = dropout_of(dropping);
    params.x_type = x_type;
    params.row_type = row_type;
    torch::stable::parallel_for(0, x_rows.rows, rows_of_thread(params.width),
                                [&](int64_t first, int64_t last) { params.run(first, last); });
  }
  return direct ? r : torch::stable::to(r, residual.scalar_type());
}

std::tuple<Tensor, Tensor> bias_dropout_add_bwd_cpu(const Tensor& dr,
                                                    const std::optional<Tensor>& bias,
                                                    const std::optional<Tensor>& random_state,
                                                    double dropout_p, ScalarType x_dtype) {
  constexpr const char* op = "bias_dropout_add_bwd";
  host::DType x_type = dtype_of(x_dtype, op, "x");
  host::DType row_type = dtype_of(dr, op, "dr");
  const Dropping dropping(random_state, dropout_p, dr, op);
  const bool direct = activation::cpu_takes(x_type, row_type);
  if (!direct) x_type = row_type = host::DType::kFloat32;
  const Rows rows = rows_of(direct ? dr : in_float32(dr), op, "dr");
  if (bias) {
    check_vector(*bias, rows.width, dr, op, "bias");
    dtype_of(*bias, op, "bias");
  }
  const bool has_dx = random_state || x_dtype != dr.scalar_type();
  Tensor dx = has_dx ? new_tensor(dr, dr.sizes(), direct ? x_dtype : ScalarType::Float)
                     : new_vector(dr, 0, x_dtype);
  const Tensor& like = bias ? *bias : dr;
  Tensor dbias = new_zero_vector(like, bias ? rows.width : 0, ScalarType::Float);
  if (rows.rows != 0 && rows.width != 0 && (has_dx || bias)) {
    CpuBackward params{};
    params.dr = rows.data();
    params.dx = has_dx ? dx.mutable_data_ptr() : nullptr;
    params.width = rows.width;
    params.dr_stride = rows.stride;
    params.dropout = dropout_of(dropping);
    params.x_type = x_type;
    params.row_type = row_type;
    float* sums = bias ? static_cast<float*>(dbias.mutable_data_ptr()) : nullptr;
    for_row_groups(rows.rows, rows.width, sums, [&](int64_t first, int64_t last, float* partial) {
      params.run(first, last, partial);
    });
  }
  if (has_dx && !direct) dx = torch::stable::to(dx, x_dtype);
  return {dx, bias ? rounded(dbias, bias->scalar_type()) : dbias};
}

}  // namespace llmjp::bindings

LLMJP_LIBRARY_IMPL(LLMJP_NAMESPACE, CPU, library) {
  library.impl("bias_dropout_add_fwd", TORCH_BOX(&llmjp::bindings::bias_dropout_add_fwd_cpu));
  library.impl("bias_dropout_add_bwd", TORCH_BOX(&llmjp::bindings::bias_dropout_add_bwd_cpu));
}
