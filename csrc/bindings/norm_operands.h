// What the norm ops are given, checked, as the parameters of their launchers, which `run` takes:
// for the CUDA kernels and for the native code of CPU tensors.
#pragma once

#include <tuple>

#include "bindings/dropping.h"
#include "bindings/tensor_checks.h"
#include "norm/layer_norm.h"

namespace llmjp::bindings {

using norm::LayerNormBackward;
using norm::LayerNormForward;

// Pointers of `weight` and `bias` once they are known to fit rows of this width.
struct Affine {
  Tensor weight;
  std::optional<Tensor> bias;
  host::DType type;

  Affine(const Tensor& weight_in, const std::optional<Tensor>& bias_in, const Rows& rows,
         const char* op)
      : weight(as_array(weight_in)), type(dtype_of(weight_in, op, "weight")) {
    check_vector(weight_in, rows.width, rows.tensor, op, "weight");
    if (bias_in) {
      check_vector(*bias_in, rows.width, rows.tensor, op, "bias");
      check_dtype(*bias_in, type, op, "bias");
      bias = as_array(*bias_in);
    }
  }

  const void* bias_data() const { return bias ? bias->const_data_ptr() : nullptr; }
};

inline void check_types(host::DType x, host::DType row, host::DType weight, const char* op) {
  using host::DType;
  const bool half = x != DType::kFloat32;
  const bool supported = (x == row && row == weight) ||
                         (half && weight == DType::kFloat32 && (row == x || row == weight));
  check(supported, op, ": the dtypes of x, residual and weight are ", host::name(x), ", ",
        host::name(row), " and ", host::name(weight),
        "; supported are one dtype for all, float16 or bfloat16 with a float32 weight, and the "
        "same with a "
        "float32 residual too.");
}

// RMSNorm is LayerNorm that is not centred.
enum class Kind { kLayerNorm, kRmsNorm };

// Forward with or without a residual: y, r (undefined without), mean (undefined in RMSNorm), rstd.
struct ForwardResult {
  Tensor y;
  Tensor r;
  Tensor mean;
  Tensor rstd;
};

template <class Run>
ForwardResult norm_forward(const Tensor& x, const Tensor* residual, const Tensor& weight,
                           const std::optional<Tensor>& bias, const Dropping& dropping, double eps,
                           Kind kind, const char* op, Run run) {
  const bool centred = kind == Kind::kLayerNorm;
  const Rows x_rows = rows_of(x, op, "x");
  const Affine affine(weight, bias, x_rows, op);
  const host::DType x_type = dtype_of(x, op, "x");
  host::DType row_type = x_type;
  std::optional<Rows> residual_rows;
  if (residual != nullptr) {
    check_tensor(*residual, x.sizes(), x, op, "residual");
    row_type = dtype_of(*residual, op, "residual");
    residual_rows = rows_of(*residual, op, "residual");
  }
  check_types(x_type, row_type, affine.type, op);
  check(eps >= 0, op, ": eps must not be negative, got ", eps, ".");

  ForwardResult result;
  result.y = new_tensor(x, x.sizes());
  if (residual != nullptr) {
    result.r = new_tensor(*residual, x.sizes());
  }
  if (x_rows.rows == 0 || x_rows.width == 0) {
    if (centred) result.mean = new_zero_vector(x, x_rows.rows, ScalarType::Float);
    result.rstd = new_zero_vector(x, x_rows.rows, ScalarType::Float);
    return result;
  }
  if (centred) result.mean = new_vector(x, x_rows.rows, ScalarType::Float);
  result.rstd = new_vector(x, x_rows.rows, ScalarType::Float);

  LayerNormForward params{};
  params.x = x_rows.data();
  params.residual = residual_rows ? residual_rows->data() : nullptr;
  params.weight = affine.weight.const_data_ptr();
  params.bias = affine.bias_data();
  params.random = dropping.data();
  params.dropout = dropping.share;
  params.y = result.y.mutable_data_ptr();
  params.r = residual_rows ? result.r.mutable_data_ptr() : nullptr;
  params.mean = centred ? static_cast<float*>(result.mean.mutable_data_ptr()) : nullptr;
  params.rstd = static_cast<float*>(result.rstd.mutable_data_ptr());
  params.rows = x_rows.rows;
  params.width = x_rows.width;
  params.x_stride = x_rows.stride;
  params.residual_stride = residual_rows ? residual_rows->stride : 0;
  params.eps = static_cast<float>(eps);
  params.centred = centred;
  params.x_type = x_type;
  params.row_type = row_type;
  params.weight_type = affine.type;
  run(params);
  return result;
}

// dr_sum, dx (empty without dropout: as dr_sum), dweight, dbias.
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// `mean` is null in RMSNorm.
template <class Run>
Gradients norm_backward(const Tensor& dy, const std::optional<Tensor>& dr, const Tensor& r,
                        const Tensor& weight, const Tensor* mean, const Tensor& rstd,
                        const std::optional<Tensor>& random_state, double dropout_p, bool has_bias,
                        const char* op, Run run) {
  const Dropping dropping(random_state, dropout_p, r, op);
  const Rows r_rows = rows_of(r, op, "r");
  const Affine affine(weight, std::nullopt, r_rows, op);
  check_tensor(dy, r.sizes(), r, op, "dy");
  const Rows dy_rows = rows_of(dy, op, "dy");
  const host::DType x_type = dtype_of(dy, op, "dy");
  const host::DType row_type = dtype_of(r, op, "r");
  check_types(x_type, row_type, affine.type, op);
  std::optional<Rows> dr_rows;
  if (dr) {
    check_tensor(*dr, r.sizes(), r, op, "dr");
    check_dtype(*dr, row_type, op, "dr");
    dr_rows = rows_of(*dr, op, "dr");
  }
  const auto check_statistics = [&](const Tensor& statistics, const char* name) {
    check_vector(statistics, r_rows.rows, r, op, name);
    check_dtype(statistics, host::DType::kFloat32, op, name);
    return as_array(statistics);
  };
  const Tensor mean_array = mean == nullptr ? Tensor() : check_statistics(*mean, "mean");
  const Tensor rstd_array = check_statistics(rstd, "rstd");

  const int64_t bias_length = has_bias ? r_rows.width : 0;
  Tensor dr_sum = new_tensor(r, r.sizes());
  Tensor dx =
      dropping.random_state ? new_tensor(dy, dy.sizes()) : new_vector(dy, 0, dy.scalar_type());
  if (r_rows.rows == 0 || r_rows.width == 0) {
    return {dr_sum, dx, new_zero_vector(weight, r_rows.width, weight.scalar_type()),
            new_zero_vector(weight, bias_length, weight.scalar_type())};
  }
  Tensor dweight = new_vector(weight, r_rows.width, weight.scalar_type());
  Tensor dbias = new_vector(weight, bias_length, weight.scalar_type());

  LayerNormBackward params{};
  params.dy = dy_rows.data();
  params.dr = dr_rows ? dr_rows->data() : nullptr;
  params.r = r_rows.data();
  params.weight = affine.weight.const_data_ptr();
  params.centred = mean != nullptr;
  params.mean = params.centred ? static_cast<const float*>(mean_array.const_data_ptr()) : nullptr;
  params.rstd = static_cast<const float*>(rstd_array.const_data_ptr());
  params.random = dropping.data();
  params.dropout = dropping.share;
  params.dr_sum = dr_sum.mutable_data_ptr();
  params.dx = dropping.random_state ? dx.mutable_data_ptr() : nullptr;
  params.dweight = dweight.mutable_data_ptr();
  params.dbias = has_bias ? dbias.mutable_data_ptr() : nullptr;
  params.rows = r_rows.rows;
  params.width = r_rows.width;
  params.dy_stride = dy_rows.stride;
  params.dr_stride = dr_rows ? dr_rows->stride : 0;
  params.r_stride = r_rows.stride;
  params.x_type = x_type;
  params.row_type = row_type;
  params.weight_type = affine.type;
  run(params);
  return {dr_sum, dx, dweight, dbias};
}

}  // namespace llmjp::bindings
