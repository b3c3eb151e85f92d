#include "activation/bias_dropout_add.h"

#include <string>

#include "activation/bias_dropout_add_launch.h"
#include "activation/bias_dropout_add_plan.h"
#include "host/device_limits.h"
#include "host/error.h"
#include "host/visit_types.h"

namespace llmjp::activation {
namespace {

template <class Params, class Visit>
void visit_types(const Params& p, Visit visit) {
  if (host::visit_types(host::TensorRowAndParameter{},
                        std::array{p.x_type, p.row_type, p.bias_type}, visit)) {
    return;
  }
  throw host::Unsupported(
      std::string(
          "bias_dropout_add takes x, residual and bias of one type, a 16-bit x and "
          "residual with float32 bias, or a 16-bit x with float32 residual and bias; got ") +
      name(p.x_type) + ", " + name(p.row_type) + " and " + name(p.bias_type));
}

}  // namespace

void bias_dropout_add_forward(const BiasDropoutAddForward& given, host::Stream stream) {
  if (given.rows == 0 || given.width == 0) return;
  BiasDropoutAddForward params = given;
  if (params.bias == nullptr) {
    split_row(params.rows, params.width, {&params.x_stride, &params.residual_stride});
  }
  visit_types(params, [&]<class X, class R, class B>() {
    launch_bias_dropout_add_forward<X, R, B>(params, stream);
  });
}

int64_t bias_dropout_add_backward_workspace(const BiasDropoutAddBackward& params) {
  if (params.rows == 0 || params.width == 0 || params.dbias == nullptr) return 0;
  const int multiprocessors = host::device_limits().multiprocessors;
  return backward_plan(params, row_chunk(params), multiprocessors).groups * params.width;
}

void bias_dropout_add_backward(const BiasDropoutAddBackward& given, host::Stream stream) {
  if (given.rows == 0 || given.width == 0) return;
  BiasDropoutAddBackward params = given;
  if (params.dbias == nullptr) split_row(params.rows, params.width, {&params.dr_stride});
  visit_types(params, [&]<class X, class R, class B>() {
    launch_bias_dropout_add_backward<X, R, B>(params, stream);
  });
}

}  // namespace llmjp::activation
