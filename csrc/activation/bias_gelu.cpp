#include "activation/bias_gelu.h"

#include <string>

#include "activation/bias_gelu_launch.h"
#include "activation/bias_gelu_plan.h"
#include "host/device_limits.h"
#include "host/error.h"
#include "host/visit_types.h"

namespace llmjp::activation {
namespace {

template <class Params, class Visit>
void visit_types(const Params& p, Visit visit) {
  if (host::visit_types(host::TensorAndParameter{}, std::array{p.x_type, p.bias_type}, visit)) {
    return;
  }
  throw host::Unsupported(
      std::string("bias_gelu takes x and bias of one type, or a 16-bit x with float32 bias; got ") +
      name(p.x_type) + " and " + name(p.bias_type));
}

}  // namespace

void bias_gelu_forward(const BiasGeluForward& given, host::Stream stream) {
  if (given.rows == 0 || given.width == 0) return;
  BiasGeluForward params = given;
  if (params.bias == nullptr) split_row(params.rows, params.width, {&params.x_stride});
  visit_types(params, [&]<class X, class B>() { launch_bias_gelu_forward<X, B>(params, stream); });
}

int64_t bias_gelu_backward_workspace(const BiasGeluBackward& params) {
  if (params.rows == 0 || params.width == 0 || params.bias == nullptr) return 0;
  const int multiprocessors = host::device_limits().multiprocessors;
  return backward_plan(params, row_chunk(params), multiprocessors).groups * params.width;
}

void bias_gelu_backward(const BiasGeluBackward& given, host::Stream stream) {
  if (given.rows == 0 || given.width == 0) return;
  BiasGeluBackward params = given;
  if (params.bias == nullptr) {
    split_row(params.rows, params.width, {&params.dy_stride, &params.x_stride});
  }
  visit_types(params, [&]<class X, class B>() { launch_bias_gelu_backward<X, B>(params, stream); });
}

}  // namespace llmjp::activation
