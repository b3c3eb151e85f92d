// What the activation ops are given, checked, as the parameters of their launchers, which `run`
// takes: for the CUDA kernels and for the native code of CPU tensors.
#pragma once

#include <initializer_list>
#include <string>
#include <tuple>

#include "activation/bias_gelu.h"
#include "activation/swiglu.h"
#include "bindings/tensor_checks.h"

namespace llmjp::bindings {

using activation::BiasGeluBackward;
using activation::BiasGeluForward;
using activation::SwigluBackward;
using activation::SwigluForward;

inline bool is_tanh(const std::string& approximate, const char* op) {
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
inline void join_rows(int64_t& rows, int64_t& width, std::initializer_list<int64_t*> strides) {
  for (const int64_t* stride : strides) {
    if (*stride != width && rows != 1) return;
  }
  width *= rows;
  rows = 1;
  for (int64_t* stride : strides) *stride = width;
}

template <class Run>
Tensor bias_gelu_forward(const Tensor& x, const std::optional<Tensor>& bias_in,
                         const std::string& approximate, Run run) {
  constexpr const char* op = "bias_gelu_fwd";
  BiasGeluForward params{};
  params.tanh = is_tanh(approximate, op);
  params.x_type = dtype_of(x, op, "x");
  const Rows x_rows = rows_of(x, op, "x");
  const Bias bias(bias_in, x_rows, params.x_type, op);
  Tensor y = new_tensor(x, x.sizes());
  params.x = x_rows.data();
  params.bias = bias.data();
  params.y = y.mutable_data_ptr();
  params.rows = x_rows.rows;
  params.width = x_rows.width;
  params.x_stride = x_rows.stride;
  params.bias_type = bias.type;
  if (!bias.tensor) join_rows(params.rows, params.width, {&params.x_stride});
  run(params);
  return y;
}

template <class Run>
std::tuple<Tensor, Tensor> bias_gelu_backward(const Tensor& dy, const Tensor& x,
                                              const std::optional<Tensor>& bias_in,
                                              const std::string& approximate, Run run) {
  constexpr const char* op = "bias_gelu_bwd";
  BiasGeluBackward params{};
  params.tanh = is_tanh(approximate, op);
  params.x_type = dtype_of(x, op, "x");
  check_tensor(dy, x.sizes(), x, op, "dy");
  check_dtype(dy, params.x_type, op, "dy");
  const Rows x_rows = rows_of(x, op, "x");
  const Rows dy_rows = rows_of(dy, op, "dy");
  const Bias bias(bias_in, x_rows, params.x_type, op);
  Tensor dx = new_tensor(x, x.sizes());
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
  run(params);
  return {dx, dbias};
}

template <class Run>
Tensor swiglu_forward(const Tensor& gate, const Tensor& up, Run run) {
  constexpr const char* op = "swiglu_fwd";
  SwigluForward params{};
  params.type = dtype_of(gate, op, "gate");
  check_tensor(up, gate.sizes(), gate, op, "up");
  check_dtype(up, params.type, op, "up");
  const Rows gate_rows = rows_of(gate, op, "gate");
  const Rows up_rows = rows_of(up, op, "up");
  Tensor y = new_tensor(gate, gate.sizes());
  params.gate = gate_rows.data();
  params.up = up_rows.data();
  params.y = y.mutable_data_ptr();
  params.rows = gate_rows.rows;
  params.width = gate_rows.width;
  params.gate_stride = gate_rows.stride;
  params.up_stride = up_rows.stride;
  join_rows(params.rows, params.width, {&params.gate_stride, &params.up_stride});
  run(params);
  return y;
}

template <class Run>
std::tuple<Tensor, Tensor> swiglu_backward(const Tensor& dy, const Tensor& gate, const Tensor& up,
                                           Run run) {
  constexpr const char* op = "swiglu_bwd";
  SwigluBackward params{};
  params.type = dtype_of(gate, op, "gate");
  check_tensor(up, gate.sizes(), gate, op, "up");
  check_dtype(up, params.type, op, "up");
  check_tensor(dy, gate.sizes(), gate, op, "dy");
  check_dtype(dy, params.type, op, "dy");
  const Rows dy_rows = rows_of(dy, op, "dy");
  const Rows gate_rows = rows_of(gate, op, "gate");
  const Rows up_rows = rows_of(up, op, "up");
  Tensor dgate = new_tensor(gate, gate.sizes());
  Tensor dup = new_tensor(gate, gate.sizes());
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
  run(params);
  return {dgate, dup};
}

}  // namespace llmjp::bindings
