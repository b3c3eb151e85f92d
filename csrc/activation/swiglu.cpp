#include "activation/swiglu.h"

#include "activation/row_plan.h"
#include "activation/swiglu_launch.h"
#include "host/visit_types.h"

namespace llmjp::activation {

void swiglu_forward(const SwigluForward& given, host::Stream stream) {
  if (given.rows == 0 || given.width == 0) return;
  SwigluForward params = given;
  split_row(params.rows, params.width, {&params.gate_stride, &params.up_stride});
  host::visit_types(host::OneType{}, std::array{params.type},
                    [&]<class T>() { launch_swiglu_forward<T>(params, stream); });
}

void swiglu_backward(const SwigluBackward& given, host::Stream stream) {
  if (given.rows == 0 || given.width == 0) return;
  SwigluBackward params = given;
  split_row(params.rows, params.width, {&params.dy_stride, &params.gate_stride, &params.up_stride});
  host::visit_types(host::OneType{}, std::array{params.type},
                    [&]<class T>() { launch_swiglu_backward<T>(params, stream); });
}

}  // namespace llmjp::activation
